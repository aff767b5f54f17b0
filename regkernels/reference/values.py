"""Specifies the penalties beyond L1 and L2 over whole tensors: what they add to the loss, and their gradients.

Gradients are equal bit for bit to those of the kernels; values are sums of terms in float64.

Sources: those of `regkernels.reference.family`; adaptive lasso, Zou (2006); group lasso, Yuan and Lin (2006).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from regkernels.reference.elementwise import sign
from regkernels.reference.family import FAMILY, VALUES
from regkernels.reference.l1_l2 import penalty_dtype
from regkernels.reference.penalties import Numbers
from regkernels.table.formats import compute_dtype
from regkernels.table.root import square_root


class Penalty(NamedTuple):
    """Holds one penalty with its strength and shape, as numbers in float64."""

    formulas: str
    """A key of `VALUES`."""
    scale: float
    """What the sum of the terms is multiplied by; 0 switches the penalty off, also where the sum is infinite."""
    value: Numbers
    slope: Numbers
    """a and b before they are multiplied by the upstream gradient."""

    def scaled(self, upstream: float) -> Numbers:
        """Returns the numbers of the slope, for a gradient of ``upstream`` in the value."""
        a, b, c, d = self.slope
        return upstream * a, upstream * b, c, d


def penalty(kind: str, strength: float, shape: float) -> Penalty:
    """Returns a penalty of the family, ``kind`` being its key; ``shape`` is unused where it has none."""
    if kind not in FAMILY:
        raise ValueError(f"there is no penalty {kind!r}")
    member = FAMILY[kind]
    scale = strength if member.linear else float(strength != 0)
    return Penalty(member.formulas.name, scale, *member.numbers(strength, shape))


def value_sum(penalty: Penalty, tensors: Sequence[Tensor]) -> float:
    """Returns the sum of the terms of all elements of all tensors, in float64."""
    terms = VALUES[penalty.formulas].terms
    return sum(terms(w.detach().double(), penalty.value).sum().item() for w in tensors)


def value_gradient(penalty: Penalty, weight: Tensor, upstream: float) -> Tensor:
    """Returns the gradient in the type of ``weight``, rounded once from the compute type."""
    w = weight.to(compute_dtype(weight.dtype))
    numbers = torch.tensor(penalty.scaled(upstream), dtype=w.dtype, device="cpu").tolist()
    return VALUES[penalty.formulas].slope(w, tuple(numbers), square_root).to(weight.dtype)


def folded_concave_penalty(tensors: Sequence[Tensor], kind: str, strength: Tensor, shape: float) -> Tensor:
    """Returns the value of a penalty that is not linear in its strength, as "mcp" and "scad" are: 0-dim, differentiable in the
    strength as well as in the tensors."""
    member = FAMILY[kind]
    wide = strength.to(device=tensors[0].device, dtype=torch.float64).reshape(())
    numbers, _ = member.numbers(wide, shape)
    total = torch.zeros_like(wide)
    for w in tensors:
        total = total + member.formulas.terms(w.double(), numbers).sum()
    return total.to(penalty_dtype(tensors))


def scaled_total(total: float, scale: float, tensors: Sequence[Tensor]) -> Tensor:
    """Returns ``scale * total``, 0-dim; a scale of 0 switches it off, also where the total is infinite."""
    return torch.tensor(scale * total if scale else 0.0, dtype=penalty_dtype(tensors), device="cpu")


def check_refused(refused: float) -> None:
    if refused:
        raise ValueError(f"weights must be finite and not negative, but {refused:.0f} of their elements are not")


def weighted_sum(tensors: Sequence[Tensor], factors: Sequence[Tensor]) -> tuple[float, float]:
    """Returns ``sum factor * |w|``, where a factor of 0 leaves its element out; and how many factors are negative or not finite."""
    total = refused = 0.0
    for w, factor in zip(tensors, factors, strict=True):
        terms = factor.double() * w.detach().double().abs()
        total += torch.where(factor != 0, terms, torch.zeros_like(terms)).sum().item()
        refused += (~((factor >= 0) & (factor < float("inf")))).sum().item()
    return total, refused


def weighted_gradient(weight: Tensor, factors: Tensor, scale: float) -> Tensor:
    """Returns ``scale * factor * sign(w)`` in the type of ``weight``, with ``scale`` rounded to the compute type."""
    w = weight.to(compute_dtype(weight.dtype))
    scale = torch.tensor(scale, dtype=w.dtype, device="cpu").item()
    return ((scale * factors.to(w.dtype)) * sign(w)).to(weight.dtype)


def in_groups(tensor: Tensor, outer: int, groups: int, inner: int) -> Tensor:
    """Views a dense tensor's memory as (outer, groups, inner); see `regkernels.table.grouping`."""
    flat = tensor.detach().as_strided((tensor.numel(),), (1,))
    return flat.reshape(outer, groups, inner)


def group_norms(tensor: Tensor, outer: int, groups: int, inner: int) -> Tensor:
    """Returns the Euclidean norm of each group of a dense tensor: float64 (groups,)."""
    x = in_groups(tensor, outer, groups, inner).double()
    return (x * x).sum(dim=(0, 2)).sqrt()


def group_factors(norms: Tensor, scale: float) -> Tensor:
    """Returns ``scale / norm``; 0 for a group that is zero, or where ``scale`` is."""
    factors = torch.full_like(norms, scale) / norms
    return torch.where((norms == 0) | (scale == 0), torch.zeros_like(norms), factors)


def group_gradient(tensor: Tensor, factors: Tensor, outer: int, groups: int, inner: int) -> Tensor:
    """Returns ``factor * w`` in the layout of ``tensor``, with factors rounded to the compute type."""
    wide = compute_dtype(tensor.dtype)
    w = in_groups(tensor, outer, groups, inner).to(wide)
    gradient = (factors.to(wide)[None, :, None] * w).to(tensor.dtype)
    return gradient.reshape(-1).as_strided(tensor.shape, tensor.stride())
