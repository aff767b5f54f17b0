"""Derivatives of proximal operators, for autograd: in eager operations, by the implicit function theorem.

Where x = prox(v) solves ``x - v + t * f'(x) = 0`` and f is smooth at x, ``dx/dv = 1 / (1 + t * f''(x))``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from regkernels.table.grouping import GroupLayout
from regkernels.table.hyper import Hyper

Curvature = Callable[[Tensor, float, float], Tensor | float]


def slope(penalty: str, x: Tensor, h: Hyper) -> Tensor:
    """dx/dv at ``x``, what an elementwise operator has made of v in a row with ``lr`` as the step. 0 where a kink or a bound
    holds x."""
    t = float(h.gain) * float(h.lr)
    decay = float(h.shrink_divisor) - 1.0
    has_kink = penalty != "huber" and bool(t) and bool(h.threshold or h.strength)
    held = (x <= h.lower) | (x >= h.upper) | ((x == 0) & has_kink)
    curvature: Tensor | float = 0.0
    if penalty in CURVATURES and h.strength:
        a = torch.where(held, torch.ones_like(x), x).abs().double()  # where it is held, anything that is no NaN will do
        curvature = CURVATURES[penalty](a, float(h.strength), float(h.shape))
    found = torch.ones_like(x, dtype=torch.float64) / (1.0 + decay + t * curvature)
    return torch.where(held, torch.zeros_like(found), found).to(x.dtype)


def group_slope(v: Tensor, upstream: Tensor, h: Hyper, layout: GroupLayout) -> Tensor:
    """``upstream`` times dx/dv of the operator by groups, at a dense ``v``."""
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


def _mcp(a: Tensor, strength: float, gamma: float) -> Tensor:
    return torch.where(a < gamma * strength, -1.0 / gamma, 0.0)


def _scad(a: Tensor, strength: float, shape: float) -> Tensor:
    return torch.where((a > strength) & (a < shape * strength), -1.0 / (shape - 1.0), 0.0)


CURVATURES: dict[str, Curvature] = {
    "l0": lambda a, strength, _: 0.0,
    "l_half": lambda a, strength, _: -0.25 * strength * a**-1.5,
    "mcp": _mcp,
    "scad": _scad,
    "log_sum": lambda a, strength, eps: -strength / (a + eps) ** 2,
    "huber": lambda a, strength, delta: torch.where(a < delta, strength, 0.0),
}
"""f''(x) by a = |x|."""
