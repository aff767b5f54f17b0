"""Finds losses with kinks, of which neither gradient steps nor Newton's find the minimum."""

from __future__ import annotations

import torch
from torch import Tensor

from regkernels.selection.objective import Objective

_DOUBLINGS, _HALVINGS = 80, 40
_JUMP = 1e-6
"""What must be left of the change of the slope, when its place is known to ``2**-40``, for it to be a jump."""


def refuse_kinks(objective: Objective) -> None:
    """Raises where the loss, as a function of the model's output, consists of straight pieces.

    Where it has no curvature at the present output, its slope is followed downhill until it changes, and the change is closed in on: that of a
    smooth loss vanishes with the interval.
    """
    inputs, targets, _ = next(iter(objective.batches))
    with torch.no_grad():
        start = objective.model(inputs)
    output = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective.loss(output, targets), output, create_graph=True)
    downhill = -gradient.detach()
    if not downhill.any() or not downhill.isfinite().all() or _curved(gradient, output, downhill):
        return
    downhill = downhill / downhill.abs().max()

    def slope(length: float) -> float:
        point = (start + length * downhill).requires_grad_()
        return (torch.autograd.grad(objective.loss(point, targets), point)[0] * downhill).sum().item()

    low, high, first = 0.0, max(start.abs().max().item(), 1.0) * 1e-6, slope(0.0)
    for _ in range(_DOUBLINGS):
        if abs(slope(high) - first) > abs(first) / 2:
            break
        high *= 2
    else:
        return
    ends = first, slope(high)
    whole = abs(ends[1] - ends[0])
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        between = slope(middle)
        if abs(between - ends[0]) >= abs(ends[1] - between):
            high, ends = middle, (ends[0], between)
        else:
            low, ends = middle, (between, ends[1])
    if abs(ends[1] - ends[0]) > _JUMP * whole:
        raise ValueError(
            "loss is not smooth: its slope jumps, as that of l1_loss or of the hinge does, and gradients do not find its minimum. Take "
            "a smooth one, such as huber_loss or smooth_l1_loss with a small delta or beta, or train with optimizer= and "
            'direction="increasing"'
        )


def _curved(gradient: Tensor, output: Tensor, direction: Tensor) -> bool:
    if not gradient.requires_grad:
        return False
    (image,) = torch.autograd.grad(gradient, output, direction, allow_unused=True)
    return image is not None and bool(image.any())
