"""Calls the C++ kernels: turns tensors into tables of addresses and makes one call, one OpenMP region, per operation.

What each function does is said in `regkernels.backends.protocol`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from regkernels import reference
from regkernels.backends import extension
from regkernels.reference import Penalty
from regkernels.table import segments
from regkernels.table.batch import Batch, in_one_go
from regkernels.table.formats import DTYPES
from regkernels.table.grouping import GroupLayout
from regkernels.table.hyper import one_by_one

_FORMULAS = {name: index for index, name in enumerate(reference.VALUES)}


def update(batch: Batch, *, with_sums: bool) -> list[tuple[float, ...]]:
    table = batch.segments
    _adopt_thread_count()
    step = partial(extension.C.update, table.data_ptr(), len(table), batch.rows, batch.totals if with_sums else 0)
    # Ctrl-C during the kernel is raised right after it: by then it has to be known that the weights have moved.
    return step() if batch.is_over is None else in_one_go(step, batch.is_over)


def proximal(batch: Batch) -> None:
    table = batch.segments
    _adopt_thread_count()
    extension.C.proximal(table.data_ptr(), len(table), one_by_one(batch.rows, batch.device))


def gradient_square_sum(batch: Batch) -> float:
    return _gradient_square_sum(batch.segments)


def gradient_square_sums(batch: Batch, classes: int) -> list[float]:
    class_of = segments.class_of_total(batch.segments[:, segments.TOTAL], batch.totals, classes)
    return [_gradient_square_sum(batch.segments[class_of == index]) for index in range(classes)]


def _gradient_square_sum(table: Tensor) -> float:
    gradient, numel = table[:, segments.GRADIENT], table[:, segments.NUMEL]
    dtype = segments.dtype_numbers(table[:, segments.KIND])
    runs = torch.stack([gradient, torch.zeros_like(gradient), numel, dtype], dim=1).contiguous()
    _adopt_thread_count()
    return extension.C.reduce(runs.data_ptr(), len(runs))[1]


def soft_threshold(x: Tensor, out: Tensor, threshold: float) -> None:
    runs = _table([x], [out])
    extension.C.soft_threshold(runs.data_ptr(), len(runs), threshold)


def penalty(tensors: Sequence[Tensor], l1: float, l2: float) -> Tensor:
    runs = _table(tensors, tensors)
    absolute, square = extension.C.reduce(runs.data_ptr(), len(runs))
    return reference.penalty_value(absolute, square, l1, l2, reference.penalty_dtype(tensors))


def penalty_gradient(
    tensors: Sequence[Tensor], out: Sequence[Tensor], upstream: Tensor, absolute: float, square: float
) -> None:
    runs, scale = _table(tensors, out), upstream.item()
    extension.C.penalty_gradient(runs.data_ptr(), len(runs), scale * absolute, scale * square)


def value(penalty: Penalty, tensors: Sequence[Tensor]) -> Tensor:
    runs = _table(tensors, tensors)
    total = extension.C.value(runs.data_ptr(), len(runs), _FORMULAS[penalty.formulas], penalty.value)
    return reference.scaled_total(total, penalty.scale, tensors)


def value_gradient(penalty: Penalty, tensors: Sequence[Tensor], out: Sequence[Tensor], upstream: Tensor) -> None:
    runs, numbers = _table(tensors, out), penalty.scaled(upstream.item())
    extension.C.slope(runs.data_ptr(), len(runs), _FORMULAS[penalty.formulas], numbers)


def weighted(tensors: Sequence[Tensor], factors: Sequence[Tensor], strength: float) -> Tensor:
    runs = _table(tensors, factors, tensors)
    total, refused = extension.C.weighted_value(runs.data_ptr(), len(runs))
    reference.check_refused(refused)
    return reference.scaled_total(total, strength, tensors)


def weighted_gradient(
    tensors: Sequence[Tensor], factors: Sequence[Tensor], out: Sequence[Tensor], upstream: Tensor, strength: float
) -> None:
    runs, scale = _table(tensors, factors, out), upstream.item() * strength
    extension.C.weighted_slope(runs.data_ptr(), len(runs), scale)


def group_norms(
    tensors: Sequence[Tensor], layouts: Sequence[GroupLayout], scales: Sequence[float], norms: Sequence[Tensor]
) -> Tensor:
    runs = _table(tensors, tensors, norms, layouts=layouts)
    totals = extension.C.group_norms(runs.data_ptr(), len(runs))
    total = sum(scale * norm for scale, norm in zip(scales, totals, strict=True) if scale)
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
    factors = [reference.group_factors(of, factor * scale) for of, scale in zip(norms, scales, strict=True)]
    runs = _table(tensors, out, factors, layouts=layouts)
    extension.C.group_scale(runs.data_ptr(), len(runs))


def _table(
    tensors: Sequence[Tensor], *columns: Sequence[Tensor], layouts: Sequence[GroupLayout] | None = None
) -> Tensor:
    """Returns the addresses of ``tensors`` and ``columns``, then sizes, dtypes and layouts: int64, a run for each tensor."""
    _adopt_thread_count()
    runs = [
        [w.data_ptr(), *(other.data_ptr() for other in others), w.numel(), DTYPES.index(w.dtype)]
        for w, *others in zip(tensors, *columns, strict=True)
    ]
    if layouts is not None:
        runs = [[*run, *layout] for run, layout in zip(runs, layouts, strict=True)]
    return torch.tensor(runs, dtype=torch.int64, device="cpu")


def _adopt_thread_count() -> None:
    # A Python thread that has not asked torch yet still has OpenMP's own number of threads.
    torch.get_num_threads()
