"""Makes a backend of the reference: eager PyTorch, which is slow and says what is right.

What each function does is said in `regkernels.backends.protocol`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from regkernels import reference
from regkernels.reference import Penalty
from regkernels.table import segments
from regkernels.table.batch import Batch
from regkernels.table.grouping import GroupLayout
from regkernels.table.hyper import on_host, one_by_one


def update(batch: Batch, *, with_sums: bool) -> list[tuple[float, ...]]:
    totals = segments.no_sums(batch.totals if with_sums else 0)
    rows = on_host(batch.rows, batch.device)
    for own in batch.operands():
        # Before the step: gradient and weight may be one memory.
        squares = reference.sums([own.gradient])[1] if with_sums else 0.0
        reference.update_(
            own.rule_or_metric,
            own.weight,
            own.gradient,
            own.states,
            rows[own.row],
            own.rounding,
            own.kept,
            own.stream,
            own.penalty,
            own.l1_weight,
            own.layout,
            own.places,
        )
        if with_sums:
            zero_groups = 0 if own.layout is None else reference.zero_groups(own.weight, own.layout)
            segments.add_sums(totals, own.total, (*reference.sums([own.weight]), squares, float(zero_groups)))
    return [tuple(total) for total in totals]


def proximal(batch: Batch) -> None:
    rows = one_by_one(batch.rows, batch.device)
    for own in batch.operands():
        reference.proximal_(own.rule_or_metric, own.weight, own.states, rows[own.row])


def gradient_square_sum(batch: Batch) -> float:
    return reference.sums([own.gradient for own in batch.operands()])[1]


def gradient_square_sums(batch: Batch, classes: int) -> list[float]:
    gradients: list[list[Tensor]] = [[] for _ in range(classes)]
    for own in batch.operands():
        gradients[segments.class_of_total(own.total, batch.totals, classes)].append(own.gradient)
    return [reference.sums(of_class)[1] for of_class in gradients]


def soft_threshold(x: Tensor, out: Tensor, threshold: float) -> None:
    out.copy_(reference.soft_threshold(x.to(reference.compute_dtype(x.dtype)), threshold))


def penalty(tensors: Sequence[Tensor], l1: float, l2: float) -> Tensor:
    absolute, square, _ = reference.sums(tensors)
    return reference.penalty_value(absolute, square, l1, l2, reference.penalty_dtype(tensors))


def penalty_gradient(
    tensors: Sequence[Tensor], out: Sequence[Tensor], upstream: Tensor, absolute: float, square: float
) -> None:
    scale = upstream.item()
    for w, o in zip(tensors, out, strict=True):
        o.copy_(reference.penalty_gradient(w, scale * absolute, scale * square))


def value(penalty: Penalty, tensors: Sequence[Tensor]) -> Tensor:
    return reference.scaled_total(reference.value_sum(penalty, tensors), penalty.scale, tensors)


def value_gradient(penalty: Penalty, tensors: Sequence[Tensor], out: Sequence[Tensor], upstream: Tensor) -> None:
    factor = upstream.item()
    for w, o in zip(tensors, out, strict=True):
        o.copy_(reference.value_gradient(penalty, w, factor))


def weighted(tensors: Sequence[Tensor], factors: Sequence[Tensor], strength: float) -> Tensor:
    total, refused = reference.weighted_sum(tensors, factors)
    reference.check_refused(refused)
    return reference.scaled_total(total, strength, tensors)


def weighted_gradient(
    tensors: Sequence[Tensor], factors: Sequence[Tensor], out: Sequence[Tensor], upstream: Tensor, strength: float
) -> None:
    scale = upstream.item() * strength
    for w, factor, o in zip(tensors, factors, out, strict=True):
        o.copy_(reference.weighted_gradient(w, factor, scale))


def group_norms(
    tensors: Sequence[Tensor], layouts: Sequence[GroupLayout], scales: Sequence[float], norms: Sequence[Tensor]
) -> Tensor:
    total = 0.0
    for w, layout, scale, out in zip(tensors, layouts, scales, norms, strict=True):
        out.copy_(reference.group_norms(w, *layout))
        total += scale * out.sum().item() if scale else 0.0
    return reference.scaled_total(total, 1.0, tensors)


def group_gradient(
    tensors: Sequence[Tensor],
    layouts: Sequence[GroupLayout],
    scales: Sequence[float],
    norms: Sequence[Tensor],
    out: Sequence[Tensor],
    upstream: Tensor,
) -> None:
    factor = upstream.item()
    for w, layout, scale, of, o in zip(tensors, layouts, scales, norms, out, strict=True):
        o.copy_(reference.group_gradient(w, reference.group_factors(of, factor * scale), *layout))
