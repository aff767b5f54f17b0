"""The C++ kernels of the penalties beyond L1 and L2: one call, one OpenMP region, per operation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regkernels import reference
from regkernels.backends import extension
from regkernels.reference.values import VALUES, Penalty
from regkernels.table import segments
from regkernels.table.grouping import GroupLayout

_INDEX = {name: index for index, name in enumerate(VALUES)}


def value(penalty: Penalty, tensors: Sequence[Tensor]) -> Tensor:
    """The sum of all terms of dense tensors, times the penalty's scale: 0-dim."""
    runs = _table(tensors, tensors, tensors)
    total = extension.C.value(runs.data_ptr(), len(runs), _INDEX[penalty.formulas], penalty.value)
    return reference.scaled_total(total, penalty.scale, tensors)


def value_gradient(penalty: Penalty, tensors: Sequence[Tensor], out: Sequence[Tensor], upstream: Tensor) -> None:
    """``upstream`` times the penalty's gradient, into ``out``: dense tensors of equal layout."""
    runs, numbers = _table(tensors, tensors, out), penalty.scaled(upstream.item())
    extension.C.slope(runs.data_ptr(), len(runs), _INDEX[penalty.formulas], numbers)


def weighted(tensors: Sequence[Tensor], factors: Sequence[Tensor], strength: float) -> Tensor:
    """``strength * sum factor * |w|``; ``factors`` are in the compute type and in the layout of ``tensors``."""
    runs = _table(tensors, tensors, factors, tensors)
    total, refused = extension.C.weighted_value(runs.data_ptr(), len(runs))
    reference.check_refused(refused)
    return reference.scaled_total(total, strength, tensors)


def weighted_gradient(
    tensors: Sequence[Tensor], factors: Sequence[Tensor], out: Sequence[Tensor], upstream: Tensor, strength: float
) -> None:
    """``out = upstream * strength * factor * sign(w)``."""
    runs, scale = _table(tensors, tensors, factors, out), upstream.item() * strength
    extension.C.weighted_slope(runs.data_ptr(), len(runs), scale)


def group_norms(
    tensors: Sequence[Tensor], layouts: Sequence[GroupLayout], scales: Sequence[float], norms: Sequence[Tensor]
) -> Tensor:
    """``sum scale * ||w_g||`` over all groups, 0-dim; the norms themselves go into ``norms``, float64 (groups,) per tensor."""
    runs = _table(tensors, tensors, tensors, norms, layouts=layouts)
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
    """``out = upstream * scale / ||w_g|| * w``, 0 for a group that is zero."""
    factor = upstream.item()
    factors = [reference.group_factors(of, factor * scale) for of, scale in zip(norms, scales, strict=True)]
    runs = _table(tensors, tensors, out, factors, layouts=layouts)
    extension.C.group_scale(runs.data_ptr(), len(runs))


def _table(
    tensors: Sequence[Tensor], *columns: Sequence[Tensor], layouts: Sequence[GroupLayout] | None = None
) -> Tensor:
    """The addresses of ``columns``, then sizes, dtypes and layouts: one row per tensor, int64."""
    # A Python thread that has not asked torch yet still has OpenMP's own number of threads.
    torch.get_num_threads()
    rows = [
        [*(of.data_ptr() for of in row), w.numel(), segments.DTYPES.index(w.dtype)]
        for w, *row in zip(tensors, *columns, strict=True)
    ]
    if layouts is not None:
        rows = [[*row, *layout] for row, layout in zip(rows, layouts, strict=True)]
    return torch.tensor(rows, dtype=torch.int64, device="cpu")
