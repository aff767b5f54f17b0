"""Lays out tensors by groups of elements, and specifies the proximal operator of groups so that it can be differentiated.

Looks at shapes and strides, never at memory, so that it works under transforms of torch.func.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from regkernels.memory import is_dense
from regkernels.reference.elementwise import clamp
from regkernels.table.grouping import GroupLayout
from regkernels.table.hyper import Hyper


def by_group(x: Tensor, dim: int | None, size: int) -> Tensor:
    """Lays out one row per group of ``size`` indices along ``dim``; None: all of ``x`` is one."""
    if dim is None or x.dim() == 0:
        return x.reshape(1, -1)
    rest = [length for index, length in enumerate(x.shape) if index != dim % x.dim()]
    return x.movedim(dim, 0).reshape(x.shape[dim] // size, size * math.prod(rest))


def from_groups(rows: Tensor, like: Tensor, dim: int | None) -> Tensor:
    """Inverts `by_group`, in the shape of ``like``."""
    if dim is None or like.dim() == 0:
        return rows.reshape(like.shape)
    return rows.reshape(like.movedim(dim, 0).shape).movedim(0, dim)


def in_memory_order(x: Tensor, layout: GroupLayout) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Returns the elements in the order of their memory, or of a contiguous copy's where they have gaps, as (outer, groups, inner);
    and what brings a tensor like that into the shape of ``x``."""
    order, strides = list(range(x.dim())), x.stride()
    if is_dense(x):
        order.sort(key=lambda dim: -strides[dim])
    ordered = x.permute(order)
    back = [order.index(dim) for dim in range(x.dim())]
    shape = ordered.shape
    return ordered.reshape(tuple(layout)), lambda y: y.reshape(shape).permute(back)


def group_operator(v: Tensor, h: Hyper, layout: GroupLayout) -> Tensor:
    """Applies the proximal operator of groups to ``v``, float64 (outer, groups, inner)."""
    t = float(h.gain) * float(h.lr)
    threshold = float(h.threshold)
    z = torch.where(v.abs() <= threshold, torch.zeros_like(v), v - threshold * v.sign()) if threshold else v
    z = clamp(z, float(h.lower), float(h.upper))
    limit = t * float(h.group_strength) * layout.weight("sqrt_size" if h.group_by_size else "ones")
    if limit:
        norm = _norm(z)
        kept = ~(norm <= limit)  # NaN stays
        z = torch.where(kept, z * (1.0 - limit / torch.where(kept, norm, torch.ones_like(norm))), torch.zeros_like(z))
    z = z / float(h.shrink_divisor)
    if h.unit_norm or h.max_norm < math.inf:
        norm = _norm(z)
        wanted = torch.ones_like(norm) if h.unit_norm else norm.clamp(max=float(h.max_norm))
        scaled = norm > 0 if h.unit_norm else norm > h.max_norm
        z = torch.where(scaled, z * (wanted / torch.where(scaled, norm, torch.ones_like(norm))), z)
    return z


def _norm(z: Tensor) -> Tensor:
    """Returns the norm of each group, with derivatives 0 at 0."""
    squares = (z * z).sum(dim=(0, 2), keepdim=True)
    zero = squares == 0
    return torch.where(zero, torch.zeros_like(squares), torch.where(zero, torch.ones_like(squares), squares).sqrt())
