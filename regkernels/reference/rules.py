"""The rules: from a gradient to a direction u and a step s."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from regkernels.hyper import Hyper
from regkernels.reference.elementwise import divide, square_root


class Rule(NamedTuple):
    """How an optimizer turns a gradient into a step; ``apply(g, states, h)`` updates ``states`` and returns u, s."""

    apply: Callable[[Tensor, Sequence[Tensor], Hyper], tuple[Tensor, Tensor | float]]
    state_names: tuple[str, ...]
    step_per_element: bool


def sgd(g: Tensor, states: Sequence[Tensor], h: Hyper) -> tuple[Tensor, Tensor | float]:
    """Gradient descent (no state)."""
    u = g
    return u, h.lr


def momentum(g: Tensor, states: Sequence[Tensor], h: Hyper) -> tuple[Tensor, Tensor | float]:
    """torch's momentum. In a parameter's first step the buffer is 0 and ``one_minus_dampening`` is 1: buffer = g.

    Source: Sutskever et al., On the importance of initialization and momentum in deep learning (2013), in the form of
    torch.optim.SGD, which multiplies by lr last.
    """
    (buffer,) = states
    buffer.copy_(h.momentum * buffer + h.one_minus_dampening * g)
    u = g + h.momentum * buffer if h.nesterov else buffer
    return u, h.lr


def adam(g: Tensor, states: Sequence[Tensor], h: Hyper) -> tuple[Tensor, Tensor]:
    """Adam. Source: Kingma and Ba (2015), algorithm 1; AdamW differs in the decay only (Loshchilov and Hutter, 2019)."""
    exp_avg, exp_avg_sq = states
    exp_avg.copy_(h.beta1 * exp_avg + h.one_minus_beta1 * g)
    exp_avg_sq.copy_(h.beta2 * exp_avg_sq + h.one_minus_beta2 * g * g)
    u = exp_avg * h.inverse_bias1
    s = divide(h.lr, square_root(exp_avg_sq) * h.inverse_sqrt_bias2 + h.eps, like=g)
    return u, s


def amsgrad(g: Tensor, states: Sequence[Tensor], h: Hyper) -> tuple[Tensor, Tensor]:
    """Adam with the running maximum of the second moment. Source: Reddi et al. (2018), algorithm 2, as in torch."""
    exp_avg, exp_avg_sq, max_exp_avg_sq = states
    exp_avg.copy_(h.beta1 * exp_avg + h.one_minus_beta1 * g)
    exp_avg_sq.copy_(h.beta2 * exp_avg_sq + h.one_minus_beta2 * g * g)
    max_exp_avg_sq.copy_(torch.maximum(max_exp_avg_sq, exp_avg_sq))  # keeps NaN
    u = exp_avg * h.inverse_bias1
    s = divide(h.lr, square_root(max_exp_avg_sq) * h.inverse_sqrt_bias2 + h.eps, like=g)
    return u, s


RULES = {
    "sgd": Rule(sgd, (), step_per_element=False),
    "momentum": Rule(momentum, ("momentum_buffer",), step_per_element=False),
    "adam": Rule(adam, ("exp_avg", "exp_avg_sq"), step_per_element=True),
    "amsgrad": Rule(amsgrad, ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"), step_per_element=True),
}
