"""Specifies the derivatives of proximal operators, for autograd: in eager operations, by the implicit function theorem.

Where x = prox(v) solves ``x - v + t * f'(x) = 0`` and f is smooth at x, ``dx/dv = 1 / (1 + t * f''(x))``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regkernels.reference.by_group import group_operator, in_memory_order
from regkernels.reference.family import FAMILY
from regkernels.reference.values import penalty as penalty_of
from regkernels.table.grouping import GroupLayout
from regkernels.table.hyper import Hyper


def slope(penalty: str, x: Tensor, h: Hyper, l1_weight: Tensor | None = None) -> Tensor:
    """Returns dx/dv at ``x``, what an elementwise operator has made of v in a row with ``lr`` as the step: 0 where a kink or a bound
    holds x, and at a kink of f' what it is towards zero."""
    held = is_held(penalty, x, h, l1_weight)
    expanded = bends(penalty, torch.where(held, torch.ones_like(x), x), h)  # where it is held, any number will do
    # Where the objective is concave there is no minimum: x is then beyond the kink, where the penalty is constant.
    expanded = torch.where(expanded <= 0, torch.full_like(expanded, float(h.shrink_divisor)), expanded)
    return torch.where(held, torch.zeros_like(expanded), 1.0 / expanded).to(x.dtype)


def is_held(penalty: str, x: Tensor, h: Hyper, l1_weight: Tensor | None = None) -> Tensor:
    """Tells which elements a kink or a bound holds."""
    member = FAMILY.get(penalty)
    t = float(h.gain) * float(h.lr)
    has_kink = (member is None or member.kink_at_zero) and bool(t) and bool(h.threshold or h.strength)
    at_kink = (x == 0) & has_kink
    if l1_weight is not None:
        at_kink = at_kink & (l1_weight != 0)
    return (x <= h.lower) | (x >= h.upper) | at_kink


def bends(penalty: str, x: Tensor, h: Hyper) -> Tensor:
    """Returns the second derivative of what the operator minimises, ``1 + t * f''(x)`` and the decay's part: float64."""
    expanded = torch.full_like(x, float(h.shrink_divisor), dtype=torch.float64)
    member = FAMILY.get(penalty)
    if member is not None and h.strength:
        numbers = penalty_of(penalty, float(h.strength), float(h.shape)).slope
        expanded = expanded + float(h.gain) * float(h.lr) * member.formulas.curvature(x.double(), numbers)
    return expanded


def group_slope(v: Tensor, upstream: Tensor, h: Hyper, layout: GroupLayout) -> Tensor:
    """Returns ``upstream`` times dx/dv of the operator by groups, at ``v``; differentiable once more where gradients are enabled."""
    more = torch.is_grad_enabled()
    with torch.enable_grad():
        own = v if more and v.requires_grad else v.detach().requires_grad_()
        rows, restore = in_memory_order(own, layout)
        z = restore(group_operator(rows.double(), h, layout))
        (found,) = torch.autograd.grad(z, own, upstream.double(), create_graph=more)
    return found
