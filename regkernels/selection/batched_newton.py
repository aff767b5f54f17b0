"""Takes Newton's steps for many elastic nets at once, on the coefficients that are not zero."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from regkernels.selection.elastic_nets import Selected

_MOST_STEPS = 40
_SHORTEST = 1e-3
"""The shortest step: the length is divided by 4 where the objective would grow."""


class Arrival(NamedTuple):
    """Says where the steps for M problems have led: ``w`` (M, C, p), ``b`` (M, C), violations there, and which have moved, (M,)."""

    w: Tensor
    b: Tensor
    violations: Tensor
    moved: Tensor


def newton(problems: Selected, w: Tensor, b: Tensor, violations: Tensor, tolerance: float) -> Arrival:
    """Takes steps from ``w`` and ``b``, where ``violations`` are known, but only those that make the objective smaller."""
    w, b, violations = w.clone(), b.clone(), violations.clone()
    moved = torch.zeros(len(w), dtype=torch.bool)
    active = torch.arange(len(w))
    if not len(w):
        return Arrival(w, b, violations, moved)
    values = problems.values(w, b)
    length = torch.ones(len(w), dtype=w.dtype)
    one = torch.zeros(len(w), dtype=torch.bool)  # lets one coefficient leave 0 at a time: slow, but always downhill
    for _ in range(_MOST_STEPS):
        own = problems[active]
        new_w, new_b = _step(own, w[active], b[active], length[active], one[active])
        value, left = own.values(new_w, new_b), own.violations(new_w, new_b)
        rounding = 8 * torch.finfo(w.dtype).eps * values[active].abs()
        better = (value < values[active] - rounding) | (
            (value <= values[active] + rounding) & (left < violations[active])
        )
        length[active] = torch.where(better | ~one[active], 1.0, length[active] / 4)
        one[active] |= ~better
        taken = active[better]
        w[taken], b[taken], values[taken], violations[taken] = (
            new_w[better],
            new_b[better],
            value[better],
            left[better],
        )
        moved[taken] = True
        active = active[(violations[active] > 1e-3 * tolerance) & (length[active] > _SHORTEST)]
        if not len(active):
            break
    return Arrival(w, b, violations, moved)


def _step(problems: Selected, w: Tensor, b: Tensor, length: Tensor, one: Tensor) -> tuple[Tensor, Tensor]:
    """Moves what is not 0, or has to leave 0. What would change its sign becomes 0."""
    folds, fold, l1, decay = problems.folds, problems.fold, problems.l1, problems.decay
    of_w, of_b = (each[:, 0] for each in folds.gradient(w[:, None], b[:, None], fold))
    excess = torch.where(w == 0, of_w.abs() - l1, 0.0)
    leaves = (excess > 0) & ((excess == excess.amax((1, 2), keepdim=True)) | ~one[:, None, None])
    signs = torch.where(leaves, -of_w.sign(), w.sign())
    slope = torch.cat([(of_w + decay * w + l1 * signs).flatten(1), of_b], 1)
    free = torch.cat([signs.flatten(1) != 0, torch.full_like(b, folds.has_intercept, dtype=torch.bool)], 1)
    # Numbers of the free parameters first; models with fewer of them are filled up with some that stay where they are.
    chosen = free.byte().sort(dim=1, descending=True, stable=True).indices[:, : max(1, int(free.sum(1).max()))]
    free = free.gather(1, chosen)
    matrix = folds.hessians(w, b, fold, chosen)
    matrix = torch.where(free[:, :, None] & free[:, None, :], matrix, 0.0)
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    # Softmax has a direction without curvature, all intercepts alike; so have features that are copies of others.
    diagonal += torch.where(free, decay[:, 0] * (chosen < w[0].numel()) + 1e-12 * diagonal.amax(1, keepdim=True), 1.0)
    move, failed = torch.linalg.solve_ex(matrix, torch.where(free, -slope.gather(1, chosen), 0.0))
    move = torch.where(failed[:, None] == 0, move, 0.0) * length[:, None]
    moves = torch.zeros_like(slope).scatter_(1, chosen, move)
    new = w + moves[:, : w[0].numel()].view_as(w)
    return torch.where(new.sign() == signs, new, 0.0), b + moves[:, w[0].numel() :]
