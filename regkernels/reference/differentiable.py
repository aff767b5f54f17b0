"""Specifies penalties and proximal operators in operations of torch that every kind of differentiation knows: forward, backward, of
any order, in batches.

What torch.func's transforms and forward-mode differentiation call in place of kernels. Numbers are float64 in between.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from regkernels.reference.by_group import by_group, from_groups, group_operator, in_memory_order
from regkernels.reference.family import FAMILY
from regkernels.reference.l1_l2 import penalty_dtype
from regkernels.reference.slopes import bends, is_held
from regkernels.reference.step import penalised_step
from regkernels.reference.values import penalty as penalty_of
from regkernels.table.formats import compute_dtype
from regkernels.table.grouping import GroupLayout
from regkernels.table.hyper import Hyper

_NEWTON_STEPS = 2  # of which n give the derivatives up to the order 2**n - 1


def penalty(params: Sequence[Tensor], l1: float, l2: float) -> Tensor:
    """Returns ``l1 * sum |w| + l2 * sum w^2``; a strength of 0 switches its term off, also where the sum is infinite."""
    total = torch.zeros((), dtype=torch.float64, device=params[0].device)
    for w in params:
        wide = w.double()
        x, y = (_switched(wide, strength) for strength in (l1, l2))
        total = total + l1 * x.abs().sum() + l2 * (y * y).sum()
    return total.to(penalty_dtype(params))


def penalty_gradient(upstream: Tensor, params: Sequence[Tensor], l1: float, l2: float) -> list[Tensor]:
    found = []
    for w in params:
        wide = w.double()
        x, y = (_switched(wide, strength) for strength in (l1, l2))
        found.append((upstream.double() * (l1 * x.sign() + 2.0 * l2 * y)).to(w.dtype))
    return found


def value(params: Sequence[Tensor], kind: str, strength: float, shape: float) -> Tensor:
    """Returns the value of a penalty of the family."""
    own = penalty_of(kind, strength, shape)
    total = torch.zeros((), dtype=torch.float64, device=params[0].device)
    for w in params:
        total = total + own.scale * FAMILY[kind].formulas.terms(_switched(w.double(), own.scale), own.value).sum()
    return total.to(penalty_dtype(params))


def slope(upstream: Tensor, params: Sequence[Tensor], kind: str, strength: float, shape: float) -> list[Tensor]:
    numbers = penalty_of(kind, strength, shape).slope
    slope = FAMILY[kind].formulas.slope
    return [(upstream.double() * slope(w.double(), numbers, torch.sqrt)).to(w.dtype) for w in params]


def weighted(params: Sequence[Tensor], factors: Sequence[Tensor], strength: float) -> Tensor:
    """Returns ``strength * sum factor * |w|``, where a factor of 0 leaves its element out."""
    total = torch.zeros((), dtype=torch.float64, device=params[0].device)
    for w, factor in zip(params, factors, strict=True):
        x = _switched(w.double(), strength)
        x = torch.where((factor == 0) & ~x.isfinite(), torch.zeros_like(x), x)
        total = total + strength * (factor * x.abs()).sum()
    return total.to(penalty_dtype(params))


def weighted_gradient(
    upstream: Tensor, params: Sequence[Tensor], factors: Sequence[Tensor], strength: float
) -> list[Tensor]:
    pairs = zip(params, factors, strict=True)
    return [(upstream.double() * strength * factor.double() * w.double().sign()).to(w.dtype) for w, factor in pairs]


def group_l1(
    params: Sequence[Tensor], strength: float, dim: int | None, size: int, weight: str
) -> tuple[Tensor, Tensor]:
    """Returns ``strength * sum weight_g * ||w_g||``, and the norms, one tensor's after the other's."""
    total = torch.zeros((), dtype=torch.float64, device=params[0].device)
    norms = []
    for w in params:
        rows = by_group(w.double(), dim, size)
        norms.append(_norms(rows))
        total = total + _scale(rows, strength, weight) * _norms(_switched(rows, strength)).sum()
    return total.to(penalty_dtype(params)), torch.cat(norms).detach()


def group_gradient(
    upstream: Tensor, params: Sequence[Tensor], norms: Tensor, strength: float, dim: int | None, size: int, weight: str
) -> list[Tensor]:
    """Returns ``upstream * scale * w / ||w_g||``, with the norm as a function of w; 0 for a group that is zero."""
    found = []
    for w in params:
        rows = _switched(by_group(w.double(), dim, size), strength)
        norm = _norms(rows)[:, None]
        unit = torch.where(
            norm == 0, torch.zeros_like(rows), rows / torch.where(norm == 0, torch.ones_like(norm), norm)
        )
        found.append(from_groups(upstream.double() * _scale(rows, strength, weight) * unit, w, dim).to(w.dtype))
    return found


def soft_threshold(x: Tensor, threshold: float) -> Tensor:
    if not threshold:
        return x.clone()
    z = x.to(compute_dtype(x.dtype))
    t = torch.full_like(z, threshold)
    return torch.where(z.abs() <= t, torch.zeros_like(z), z - t * z.sign()).to(x.dtype)


def proximal(
    x: Tensor, l1_weight: Tensor | None, penalty: str, hyper: Sequence[float], layout: Sequence[int]
) -> Tensor:
    """Applies a proximal operator; the arguments are those of the registered operator."""
    h = Hyper(*hyper)
    if penalty != "group":
        return _proximal_of_elements(x, l1_weight, penalty, h)
    rows, restore = in_memory_order(x, GroupLayout(*layout))
    return restore(group_operator(rows.double(), h, GroupLayout(*layout))).to(x.dtype)


def _proximal_of_elements(v: Tensor, l1_weight: Tensor | None, penalty: str, h: Hyper) -> Tensor:
    """Applies the operator as kernels do, and gives the result its derivatives: those of Newton's steps from it.

    It solves ``divisor * x - v + t * f'(x) = 0``, and of a constant that does, each step of Newton's method doubles the number of
    derivatives by v that are right.
    """
    dtype = compute_dtype(v.dtype)
    row = Hyper(*numpy.asarray(h, dtype=numpy.float64 if dtype == torch.float64 else numpy.float32).tolist())
    constant = None if l1_weight is None else l1_weight.detach()
    found = penalised_step(penalty, v.detach().to(dtype), row.lr, row, constant).double()
    held = is_held(penalty, found, h, constant)
    start = torch.where(held, torch.ones_like(found), found)  # where it is held, anything that is no NaN will do
    expanded = bends(penalty, start, h)
    member, divisor = FAMILY.get(penalty), float(h.shrink_divisor)
    x = start
    for _ in range(_NEWTON_STEPS):
        if member is not None and h.strength:
            numbers = penalty_of(penalty, float(h.strength), float(h.shape)).slope
            pull = float(h.gain) * float(h.lr) * member.formulas.slope(x, numbers, torch.sqrt)
            pull = torch.where(expanded <= 0, torch.zeros_like(pull), pull)
        else:
            pull = float(h.threshold) * (x.sign() if l1_weight is None else l1_weight * x.sign())
        x = x - (divisor * x - v.double() + pull) / torch.where(expanded <= 0, torch.full_like(x, divisor), expanded)
    change = x - x.detach()  # 0, with derivatives
    return torch.where(held | change.isnan(), found, found + change).to(v.dtype)


def _switched(x: Tensor, strength: float) -> Tensor:
    """Returns ``x``; zeros that depend on it where the strength is 0, so that nothing of x is left, be it infinite."""
    return x if strength else torch.where(torch.ones_like(x, dtype=torch.bool), torch.zeros_like(x), x)


def _norms(rows: Tensor) -> Tensor:
    """Returns the norm of each row, with derivatives 0 at 0."""
    squares = (rows * rows).sum(1)
    zero = squares == 0
    return torch.where(zero, torch.zeros_like(squares), torch.where(zero, torch.ones_like(squares), squares).sqrt())


def _scale(rows: Tensor, strength: float, weight: str) -> Tensor:
    # A tensor: torch.compile cannot do with the root of a shape that is a symbol.
    return strength * rows.new_full((), rows.shape[1] if weight == "sqrt_size" else 1.0).sqrt()
