"""The C++ kernels: turns tensors into tables of addresses and makes one call, one OpenMP region, per operation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regkernels import reference
from regkernels.backends import extension
from regkernels.table import segments
from regkernels.table.hyper import Hyper

if TYPE_CHECKING:
    from regkernels.attach.plan import Plan as Shrinkage
    from regkernels.optim.step.plan import Plan


def update(plan: Plan, rows: list[Hyper], groups: int) -> list[tuple[float, ...]]:
    """One step of all active entries. Returns the sums of `regkernels.table.segments.SUMS` per group; none for ``groups`` 0."""
    table = plan.segments
    _adopt_thread_count()
    return extension.C.update(table.data_ptr(), len(table), rows, groups)


def gradient_square_sum(plan: Plan) -> float:
    """Sum of the squares of all gradients."""
    return _gradient_square_sum(plan.segments)


def gradient_square_sums(plan: Plan, classes: int) -> list[float]:
    """The same for each class of parameters."""
    of_segment = plan.segments[:, segments.TOTAL] // (plan.totals // classes)
    return [_gradient_square_sum(plan.segments[of_segment == index]) for index in range(classes)]


def _gradient_square_sum(table: Tensor) -> float:
    gradient, numel = table[:, segments.GRADIENT], table[:, segments.NUMEL]
    dtype = segments.dtype_numbers(table[:, segments.KIND])
    runs = torch.stack([gradient, torch.zeros_like(gradient), numel, dtype], dim=1).contiguous()
    _adopt_thread_count()
    return extension.C.reduce(runs.data_ptr(), len(runs))[1]


def penalty(tensors: Sequence[Tensor], l1: float, l2: float) -> Tensor:
    """``l1 * sum |w| + l2 * sum w^2`` of dense tensors: 0-dim."""
    runs = _runs(tensors, tensors)
    _adopt_thread_count()
    absolute, square = extension.C.reduce(runs.data_ptr(), len(runs))
    return reference.penalty_value(absolute, square, l1, l2, reference.penalty_dtype(tensors))


def penalty_gradient(
    tensors: Sequence[Tensor], out: Sequence[Tensor], upstream: Tensor, absolute: float, square: float
) -> None:
    """``out = upstream * absolute * sign(w) + upstream * square * w`` for dense tensors of equal layout."""
    runs, scale = _runs(tensors, out), upstream.item()
    _adopt_thread_count()
    extension.C.penalty_gradient(runs.data_ptr(), len(runs), scale * absolute, scale * square)


def soft_threshold(x: Tensor, out: Tensor, threshold: float) -> None:
    """``out = soft_threshold(x)`` for dense tensors of equal layout; ``out`` may be ``x``."""
    runs = _runs([x], [out])
    _adopt_thread_count()
    extension.C.soft_threshold(runs.data_ptr(), len(runs), threshold)


def proximal(plan: Shrinkage, rows: list[Hyper]) -> None:
    """Shrinks the weights of a plan in the metric of the step that was made."""
    table = plan.segments
    _adopt_thread_count()
    extension.C.proximal(table.data_ptr(), len(table), rows)


def _runs(tensors: Sequence[Tensor], out: Sequence[Tensor]) -> Tensor:
    rows = [
        (w.data_ptr(), o.data_ptr(), w.numel(), segments.DTYPES.index(w.dtype))
        for w, o in zip(tensors, out, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.int64, device="cpu").reshape(len(rows), 4)


def _adopt_thread_count() -> None:
    # A Python thread that has not asked torch yet still has OpenMP's own number of threads.
    torch.get_num_threads()
