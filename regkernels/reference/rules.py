"""Specifies the rules: from a gradient to a move of the weight and a step s per element."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from regkernels.reference.elementwise import divide, sign
from regkernels.table.hyper import Hyper
from regkernels.table.root import square_root

Share = Callable[[Tensor], Tensor]
"""What is done to second moments before they make a step: nothing, or a mean over each group of elements."""


class Rule(NamedTuple):
    """Says how an optimizer turns a gradient into a step.

    ``apply(g, states, h, share)`` updates ``states`` and returns what is taken from the weight, and the step s: the metric of the
    proximal operators, a tensor where ``step_per_element``.
    """

    apply: Callable[[Tensor, Sequence[Tensor], Hyper, Share], tuple[Tensor, Tensor | float]]
    state_names: tuple[str, ...]
    step_per_element: bool
    of_signs: bool = False
    """It takes signs of gradients, which complex ones have not."""


def sgd(g: Tensor, states: Sequence[Tensor], h: Hyper, share: Share) -> tuple[Tensor, Tensor | float]:
    """Makes the step of gradient descent, which has no state."""
    return h.lr * g, h.lr


def momentum(g: Tensor, states: Sequence[Tensor], h: Hyper, share: Share) -> tuple[Tensor, Tensor | float]:
    """Makes the step of torch's momentum. In a parameter's first step the buffer is 0 and ``one_minus_dampening`` is 1: buffer = g.

    Source: Sutskever et al., On the importance of initialization and momentum in deep learning (2013), in the form of
    torch.optim.SGD, which multiplies by lr last.
    """
    (buffer,) = states
    buffer.copy_(h.momentum * buffer + h.one_minus_dampening * g)
    u = g + h.momentum * buffer if h.nesterov else buffer
    return h.lr * u, h.lr


def adam(g: Tensor, states: Sequence[Tensor], h: Hyper, share: Share) -> tuple[Tensor, Tensor]:
    """Makes the step of Adam. Source: Kingma and Ba (2015), algorithm 1; AdamW differs only in the decay (Loshchilov and Hutter,
    2019).

    RAdam is this rule with other numbers: Liu et al., On the variance of the adaptive learning rate (2020), algorithm 2.
    """
    exp_avg, exp_avg_sq = states
    exp_avg.copy_(h.beta1 * exp_avg + h.one_minus_beta1 * g)
    exp_avg_sq.copy_(h.beta2 * exp_avg_sq + h.one_minus_beta2 * g * g)
    s = divide(h.lr, square_root(share(exp_avg_sq)) * h.inverse_sqrt_bias2 + h.eps, like=g)
    return s * (exp_avg * h.inverse_bias1), s


def amsgrad(g: Tensor, states: Sequence[Tensor], h: Hyper, share: Share) -> tuple[Tensor, Tensor]:
    """Makes the step of Adam with the running maximum of the second moment. Source: Reddi et al. (2018), algorithm 2, as in
    torch."""
    exp_avg, exp_avg_sq, max_exp_avg_sq = states
    exp_avg.copy_(h.beta1 * exp_avg + h.one_minus_beta1 * g)
    exp_avg_sq.copy_(h.beta2 * exp_avg_sq + h.one_minus_beta2 * g * g)
    max_exp_avg_sq.copy_(torch.maximum(max_exp_avg_sq, exp_avg_sq))  # keeps NaN
    s = divide(h.lr, square_root(share(max_exp_avg_sq)) * h.inverse_sqrt_bias2 + h.eps, like=g)
    return s * (exp_avg * h.inverse_bias1), s


def rmsprop(g: Tensor, states: Sequence[Tensor], h: Hyper, share: Share) -> tuple[Tensor, Tensor]:
    """Makes the step of RMSprop. Source: Hinton, Neural networks for machine learning, lecture 6e (2012), as in torch."""
    (square_avg,) = states
    square_avg.copy_(h.beta2 * square_avg + h.one_minus_beta2 * g * g)
    s = divide(h.lr, square_root(share(square_avg)) + h.eps, like=g)
    return s * g, s


def rmsprop_momentum(g: Tensor, states: Sequence[Tensor], h: Hyper, share: Share) -> tuple[Tensor, Tensor]:
    """Makes the step of RMSprop whose scaled gradients are accumulated."""
    square_avg, buffer = states
    square_avg.copy_(h.beta2 * square_avg + h.one_minus_beta2 * g * g)
    scale = divide(1.0, square_root(share(square_avg)) + h.eps, like=g)
    buffer.copy_(h.momentum * buffer + scale * g)
    return h.lr * buffer, h.lr * scale


def rmsprop_centered(g: Tensor, states: Sequence[Tensor], h: Hyper, share: Share) -> tuple[Tensor, Tensor]:
    """Makes the step of RMSprop by the variance. Source: Graves, Generating sequences with recurrent neural networks (2013),
    equation 39."""
    square_avg, grad_avg = states
    square_avg.copy_(h.beta2 * square_avg + h.one_minus_beta2 * g * g)
    grad_avg.copy_(h.beta2 * grad_avg + h.one_minus_beta2 * g)
    s = divide(h.lr, square_root(share(variance(square_avg, grad_avg))) + h.eps, like=g)
    return s * g, s


def rmsprop_centered_momentum(g: Tensor, states: Sequence[Tensor], h: Hyper, share: Share) -> tuple[Tensor, Tensor]:
    """Makes the step of RMSprop by the variance, whose scaled gradients are accumulated."""
    square_avg, buffer, grad_avg = states
    square_avg.copy_(h.beta2 * square_avg + h.one_minus_beta2 * g * g)
    grad_avg.copy_(h.beta2 * grad_avg + h.one_minus_beta2 * g)
    scale = divide(1.0, square_root(share(variance(square_avg, grad_avg))) + h.eps, like=g)
    buffer.copy_(h.momentum * buffer + scale * g)
    return h.lr * buffer, h.lr * scale


def variance(square_avg: Tensor, grad_avg: Tensor) -> Tensor:
    """Returns ``square_avg - grad_avg**2``, not below 0: where the gradient is constant, rounding alone could make it negative and
    the weight NaN."""
    difference = square_avg - grad_avg * grad_avg
    return torch.where(difference < 0, torch.zeros_like(difference), difference)


def adagrad(g: Tensor, states: Sequence[Tensor], h: Hyper, share: Share) -> tuple[Tensor, Tensor]:
    """Makes the step of Adagrad. Source: Duchi, Hazan and Singer (2011), with torch's decay of lr."""
    (total,) = states
    total.copy_(total + g * g)
    s = divide(h.lr, square_root(share(total)) + h.eps, like=g)
    return s * g, s


def lion(g: Tensor, states: Sequence[Tensor], h: Hyper, share: Share) -> tuple[Tensor, Tensor | float]:
    """Makes the step of Lion. Source: Chen et al., Symbolic discovery of optimization algorithms (2023), algorithm 2."""
    (exp_avg,) = states
    u = sign(h.beta1 * exp_avg + h.one_minus_beta1 * g)
    exp_avg.copy_(h.beta2 * exp_avg + h.one_minus_beta2 * g)
    return h.lr * u, h.lr


def still(g: Tensor, states: Sequence[Tensor], h: Hyper, share: Share) -> tuple[Tensor, Tensor | float]:
    """Makes no step at all: what follows is applied to the weights as they are."""
    return torch.zeros_like(g), h.lr


def itself(v: Tensor) -> Tensor:
    return v


RULES = {
    "sgd": Rule(sgd, (), step_per_element=False),
    "momentum": Rule(momentum, ("momentum_buffer",), step_per_element=False),
    "adam": Rule(adam, ("exp_avg", "exp_avg_sq"), step_per_element=True),
    "amsgrad": Rule(amsgrad, ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"), step_per_element=True),
    "rmsprop": Rule(rmsprop, ("square_avg",), step_per_element=True),
    "rmsprop_momentum": Rule(rmsprop_momentum, ("square_avg", "momentum_buffer"), step_per_element=True),
    "rmsprop_centered": Rule(rmsprop_centered, ("square_avg", "grad_avg"), step_per_element=True),
    "rmsprop_centered_momentum": Rule(
        rmsprop_centered_momentum, ("square_avg", "momentum_buffer", "grad_avg"), step_per_element=True
    ),
    "adagrad": Rule(adagrad, ("sum",), step_per_element=True),
    "lion": Rule(lion, ("exp_avg",), step_per_element=False, of_signs=True),
    "still": Rule(still, (), step_per_element=False),
}
