"""Specifies the derivatives of proximal operators, for autograd: in eager operations, by the implicit function theorem.

Where x = prox(v) solves ``x - v + t * f'(x) = 0`` and f is smooth at x, ``dx/dv = 1 / (1 + t * f''(x))``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regkernels.reference.family import FAMILY
from regkernels.reference.values import penalty as penalty_of
from regkernels.table.grouping import GroupLayout
from regkernels.table.hyper import Hyper


def slope(penalty: str, x: Tensor, h: Hyper) -> Tensor:
    """Returns dx/dv at ``x``, what an elementwise operator has made of v in a row with ``lr`` as the step: 0 where a kink or a bound
    holds x, and at a kink of f' what it is towards zero."""
    t, divisor = float(h.gain) * float(h.lr), float(h.shrink_divisor)
    member = FAMILY.get(penalty)
    has_kink = (member is None or member.kink_at_zero) and bool(t) and bool(h.threshold or h.strength)
    held = (x <= h.lower) | (x >= h.upper) | ((x == 0) & has_kink)
    expanded = torch.full_like(x, divisor, dtype=torch.float64)
    if member is not None and h.strength:
        w = torch.where(held, torch.ones_like(x), x).double()  # where it is held, anything that is no NaN will do
        numbers = penalty_of(penalty, float(h.strength), float(h.shape)).slope
        expanded = divisor + t * member.formulas.curvature(w, numbers)
        # Where the objective is concave there is no minimum: x is then beyond the kink, where the penalty is constant.
        expanded = torch.where(expanded <= 0, torch.full_like(expanded, divisor), expanded)
    return torch.where(held, torch.zeros_like(expanded), 1.0 / expanded).to(x.dtype)


def group_slope(v: Tensor, upstream: Tensor, h: Hyper, layout: GroupLayout) -> Tensor:
    """Returns ``upstream`` times dx/dv of the operator by groups, at a dense ``v``."""
    t = float(h.gain) * float(h.lr)
    by_group = (layout.outer, layout.groups, layout.inner)
    strides = (layout.groups * layout.inner, layout.inner, 1)
    with torch.enable_grad():
        w = v.detach().as_strided(by_group, strides).double().requires_grad_()
        z = torch.nn.functional.softshrink(w, float(h.threshold))
        z = torch.where(z > h.lower, z, torch.full_like(z, max(float(h.lower), -torch.finfo(z.dtype).max)))
        limit = t * float(h.group_strength) * layout.weight("sqrt_size" if h.group_by_size else "ones")
        norm = torch.linalg.vector_norm(z, dim=(0, 2), keepdim=True)
        kept = norm > limit
        z = torch.where(kept, z * (1.0 - limit / torch.where(kept, norm, torch.ones_like(norm))), torch.zeros_like(z))
        z = z / float(h.shrink_divisor)
        norm = torch.linalg.vector_norm(z, dim=(0, 2), keepdim=True)
        wanted = torch.ones_like(norm) if h.unit_norm else norm.clamp(max=float(h.max_norm))
        z = torch.where(norm > 0, z * (wanted / torch.where(norm > 0, norm, torch.ones_like(norm))), z)
        (found,) = torch.autograd.grad(z, w, upstream.as_strided(by_group, strides).double())
    return found.to(v.dtype).as_strided(v.shape, v.stride())
