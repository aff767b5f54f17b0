"""Specifies sums over tensors, and the penalties made of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from regkernels.reference.elementwise import sign
from regkernels.table.formats import compute_dtype


def sums(tensors: Iterable[Tensor]) -> tuple[float, float, float]:
    """Returns ``(sum |w|, sum w^2, number of w != 0)`` over all elements of all tensors, in float64."""
    absolute = square = nonzeros = 0.0
    for tensor in tensors:
        w = tensor.detach().double()
        absolute += w.abs().sum().item()
        square += (w * w).sum().item()
        nonzeros += w.count_nonzero().item()
    return absolute, square, nonzeros


def elastic_net_penalty(params: Sequence[Tensor], l1: float, l2: float) -> Tensor:
    """Returns ``l1 * sum |w| + l2 * sum w^2``, differentiable, in the promoted compute type of ``params``. No 1/2 before l2."""
    total = torch.zeros((), dtype=torch.float64, device=params[0].device)
    for w in params:
        w = w.double()
        total = total + l1 * w.abs().sum() + l2 * (w * w).sum()
    return total.to(penalty_dtype(params))


def penalty_value(absolute: float, square: float, l1: float, l2: float, dtype: torch.dtype) -> Tensor:
    """Returns ``l1 * absolute + l2 * square``; a strength of 0 switches its term off, also where the sum is infinite."""
    total = (l1 * absolute if l1 else 0.0) + (l2 * square if l2 else 0.0)
    return torch.tensor(total, dtype=dtype, device="cpu")


def penalty_gradient(weight: Tensor, absolute: float, square: float) -> Tensor:
    """Returns ``absolute * sign(w) + square * w`` in the type of ``weight``: the penalty's gradient for absolute = upstream * l1
    and square = upstream * 2 * l2, each rounded once to the compute type."""
    w = weight.to(compute_dtype(weight.dtype))
    absolute, square = torch.tensor([absolute, square], dtype=w.dtype, device="cpu").tolist()
    gradient = absolute * sign(w)
    if square:  # 0 * inf would be NaN
        gradient = gradient + square * w
    return gradient.to(weight.dtype)


def l1_penalty(params: Sequence[Tensor], strength: float) -> Tensor:
    """Returns ``strength * sum |w|``."""
    return elastic_net_penalty(params, strength, 0.0)


def l2_penalty(params: Sequence[Tensor], strength: float) -> Tensor:
    """Returns ``strength * sum w^2``. No 1/2: torch's ``weight_decay`` is ``2 * strength``."""
    return elastic_net_penalty(params, 0.0, strength)


def penalty_dtype(params: Iterable[Tensor]) -> torch.dtype:
    """Returns float64 where any parameter is, else float32: a sum of many terms has no place in 8 or 11 bits."""
    return torch.float64 if any(w.dtype == torch.float64 for w in params) else torch.float32
