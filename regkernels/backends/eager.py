"""The eager reference behind the calls of a backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from regkernels import reference
from regkernels.table.hyper import Hyper
from regkernels.table.segments import SUMS

if TYPE_CHECKING:
    from regkernels.attach.plan import Plan as Shrinkage
    from regkernels.optim.step.plan import Plan


def update(plan: Plan, rows: list[Hyper], groups: int) -> list[tuple[float, ...]]:
    """One step of all active entries. Returns the sums of `regkernels.table.segments.SUMS` per group; none for ``groups`` 0."""
    totals = [[0.0] * len(SUMS) for _ in range(groups)]
    for entry, row in plan.active_entries():
        gradient = entry.gradient_to_read()
        squares = reference.sums([gradient])[1] if groups else 0.0  # before the step: both may be one memory
        reference.update_(
            entry.rule,
            entry.weight,
            gradient,
            entry.tensors,
            rows[row],
            entry.format.rounding,
            entry.kept,
            entry.stream,
            entry.kind.penalty,
            entry.l1_weight,
            entry.layout if entry.by_groups else None,
            entry.places,
        )
        if groups:
            zero_groups = reference.zero_groups(entry.weight, entry.layout) if entry.by_groups else 0
            found = (*reference.sums([entry.weight]), squares, float(zero_groups))
            totals[entry.total] = [total + value for total, value in zip(totals[entry.total], found, strict=True)]
    return [tuple(total) for total in totals]


def gradient_square_sum(plan: Plan) -> float:
    """Sum of the squares of all gradients."""
    return reference.sums([entry.gradient_to_read() for entry, _ in plan.active_entries()])[1]


def gradient_square_sums(plan: Plan, classes: int) -> list[float]:
    """The same for each class of parameters."""
    gradients: list[list[Tensor]] = [[] for _ in range(classes)]
    for entry, _ in plan.active_entries():
        gradients[entry.total // (plan.totals // classes)].append(entry.gradient_to_read())
    return [reference.sums(of_class)[1] for of_class in gradients]


def penalty(tensors: Sequence[Tensor], l1: float, l2: float) -> Tensor:
    """``l1 * sum |w| + l2 * sum w^2`` of dense tensors: 0-dim."""
    absolute, square, _ = reference.sums(tensors)
    return reference.penalty_value(absolute, square, l1, l2, reference.penalty_dtype(tensors))


def penalty_gradient(
    tensors: Sequence[Tensor], out: Sequence[Tensor], upstream: Tensor, absolute: float, square: float
) -> None:
    """``out = upstream * absolute * sign(w) + upstream * square * w`` for dense tensors of equal layout."""
    scale = upstream.item()
    for w, o in zip(tensors, out, strict=True):
        o.copy_(reference.penalty_gradient(w, scale * absolute, scale * square))


def soft_threshold(x: Tensor, out: Tensor, threshold: float) -> None:
    """``out = soft_threshold(x)`` for dense tensors of equal layout; ``out`` may be ``x``."""
    out.copy_(reference.soft_threshold(x.to(reference.compute_dtype(x.dtype)), threshold))


def proximal(plan: Shrinkage, rows: list[Hyper]) -> None:
    """Shrinks the weights of a plan in the metric of the step that was made."""
    for metric, weight, operands, row in plan.work():
        reference.proximal_(metric, weight, operands, rows[row])
