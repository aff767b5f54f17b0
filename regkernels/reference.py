"""The specification: every operation of the package in plain eager PyTorch.

The C++ and the Triton kernels perform the same IEEE operations in the same order, so their weights and states equal
these bit for bit. That is why the lines below avoid what rounds differently from backend to backend:

- no ``lerp``, ``addcmul``, ``addcdiv``, no ``alpha=``: they may contract to a fused multiply-add;
- no ``scalar / tensor`` and no ``tensor / scalar``: torch may compute a reciprocal and multiply;
- `square_root` instead of ``torch.sqrt``, which is an ulp off for some values on CPU.

Sums are not part of the bit promise; they are formed in float64 and agree to 1e-6 (in practice 1e-14).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from regkernels.hyper import Hyper


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that weights of ``dtype`` are updated in, and that their states have: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# --- element by element -------------------------------------------------------------------------------------------


def square_root(x: Tensor) -> Tensor:
    """The correctly rounded square root of a float32 or float64 CPU tensor (IEEE 754)."""
    if x.dtype == torch.float32:
        return x.double().sqrt().float()  # exact: a double holds more than twice the bits of a float, and two more
    root = torch.empty_like(x)
    numpy.sqrt(x.numpy(), out=root.numpy())  # the processor's instruction; torch calls a library for long arrays
    return root


def sign(x: Tensor) -> Tensor:
    """-1, 0 or 1; NaN stays. The subgradient of ``|x|`` that is taken at 0 is 0."""
    zero = torch.zeros_like(x)
    return torch.where(x > 0, zero + 1, torch.where(x < 0, zero - 1, torch.where(x == 0, zero, x)))


def soft_threshold(z: Tensor, t: Tensor | float) -> Tensor:
    """The proximal operator of ``t * |x|``: ``z - clamp(z, -t, t)``. Never -0.0; NaN stays; ``t == 0`` gives ``z``.

    ``z``: float32 or float64, any shape; ``t >= 0``: a number, or a tensor that broadcasts.
    Source: Parikh and Boyd, Proximal Algorithms (2014), section 6.5.2.
    """
    t = torch.as_tensor(t, dtype=z.dtype, device=z.device)
    low = torch.where(z < -t, -t, z)
    clamped = torch.where(low > t, t, low)
    return torch.where(t > 0, z - clamped, z)


def divide(numerator: Tensor | float, denominator: Tensor | float, like: Tensor) -> Tensor:
    """An IEEE division, also where one side is a number."""
    top = numerator if isinstance(numerator, Tensor) else torch.full_like(like, numerator)
    bottom = denominator if isinstance(denominator, Tensor) else torch.full_like(like, denominator)
    return top / bottom


# --- the rules: from a gradient to a direction u and a step s -----------------------------------------------------


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


# --- the step: a rule between two regularisation steps ------------------------------------------------------------


@torch.no_grad()
def update_(rule: str, weight: Tensor, gradient: Tensor, states: Sequence[Tensor], hyper: Hyper) -> None:
    """One optimizer step of one tensor. Mutates ``weight`` and ``states``; ``gradient`` is read only.

    ``weight`` and ``gradient``: float64, float32, float16 or bfloat16, same shape and dtype, real. ``states``: as many as
    the rule has, in `compute_dtype`. A step with ``lr == 0`` updates the states and leaves the weight's bits alone.
    """
    dtype = compute_dtype(weight.dtype)
    h = hyper.rounded(dtype)
    w = weight.to(dtype)
    g = gradient.to(dtype) * h.scale
    if h.coupled_decay:
        g = g + h.coupled_decay * w
    if h.subgradient:
        g = g + h.subgradient * sign(w)
    w = w * h.decay
    u, s = RULES[rule].apply(g, states, h)
    z = w - s * u
    t = h.threshold_per_step * s if h.threshold_per_step else h.threshold
    z = soft_threshold(z, t)
    divisor = h.shrink_per_step * s + 1.0 if h.shrink_per_step else h.shrink_divisor
    z = divide(z, divisor, like=z)
    if h.lr:
        weight.copy_(z)


# --- sums and penalties -------------------------------------------------------------------------------------------


def sums(tensors: Iterable[Tensor]) -> tuple[float, float, float]:
    """``(sum |w|, sum w^2, number of w != 0)`` over all elements of all tensors, in float64."""
    absolute = square = nonzeros = 0.0
    for tensor in tensors:
        w = tensor.detach().double()
        absolute += w.abs().sum().item()
        square += (w * w).sum().item()
        nonzeros += w.count_nonzero().item()
    return absolute, square, nonzeros


def elastic_net_penalty(params: Sequence[Tensor], l1: float, l2: float) -> Tensor:
    """``l1 * sum |w| + l2 * sum w^2``, differentiable, in the promoted compute type of ``params``. No 1/2 before l2."""
    total = torch.zeros((), dtype=torch.float64, device=params[0].device)
    for w in params:
        w = w.double()
        total = total + l1 * w.abs().sum() + l2 * (w * w).sum()
    return total.to(penalty_dtype(params))


def penalty_value(absolute: float, square: float, l1: float, l2: float, dtype: torch.dtype) -> Tensor:
    """``l1 * absolute + l2 * square``; a strength of 0 switches its term off, also where the sum is infinite."""
    total = (l1 * absolute if l1 else 0.0) + (l2 * square if l2 else 0.0)
    return torch.tensor(total, dtype=dtype, device="cpu")


def penalty_gradient(weight: Tensor, absolute: float, square: float) -> Tensor:
    """``absolute * sign(w) + square * w`` in the type of ``weight``: the penalty's gradient for absolute = upstream * l1
    and square = upstream * 2 * l2, each rounded once to the compute type."""
    w = weight.to(compute_dtype(weight.dtype))
    absolute, square = torch.tensor([absolute, square], dtype=w.dtype, device="cpu").tolist()
    gradient = absolute * sign(w)
    if square:  # 0 * inf would be NaN
        gradient = gradient + square * w
    return gradient.to(weight.dtype)


def l1_penalty(params: Sequence[Tensor], strength: float) -> Tensor:
    """``strength * sum |w|``."""
    return elastic_net_penalty(params, strength, 0.0)


def l2_penalty(params: Sequence[Tensor], strength: float) -> Tensor:
    """``strength * sum w^2``. No 1/2: torch's ``weight_decay`` is ``2 * strength``."""
    return elastic_net_penalty(params, 0.0, strength)


def penalty_dtype(params: Iterable[Tensor]) -> torch.dtype:
    """float64 where any parameter is, else float32: a sum of many terms has no place in 8 or 11 bits."""
    return torch.float64 if any(w.dtype == torch.float64 for w in params) else torch.float32
