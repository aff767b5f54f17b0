"""Penalties in the loss: one launch per dtype, and one or two that add partial sums."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy
import torch
from torch import Tensor

from regkernels import reference
from regkernels.backends.gpu import check_dtype
from regkernels.backends.triton import architectures
from regkernels.backends.triton.kernels import columns, elementwise, sums, values
from regkernels.backends.triton.kernels import group_values as groups
from regkernels.backends.triton.kernels.penalties import FORMULAS
from regkernels.backends.triton.launch import TYPES, empty, guard, launch, over_chunks, reduced, second_stage
from regkernels.backends.triton.tables import work_of
from regkernels.reference import Penalty
from regkernels.table.formats import DTYPES
from regkernels.table.grouping import GroupLayout
from regkernels.table.upload import upload


def soft_threshold(x: Tensor, out: Tensor, threshold: float) -> None:
    _map(elementwise.shrink, [x], [out], None, threshold, 0.0)


def penalty(tensors: Sequence[Tensor], l1: float, l2: float) -> Tensor:
    device = tensors[0].device
    with guard(device):
        work = work_of(tensors, tensors)
        out = torch.empty((), dtype=reference.penalty_dtype(tensors), device=device)
        second_stage(sums.penalty, (1,), work, reduced(work, columns.WEIGHT, device), out, l1, l2)
        return out


def penalty_gradient(
    tensors: Sequence[Tensor], out: Sequence[Tensor], upstream: Tensor, absolute: float, square: float
) -> None:
    _map(elementwise.penalty_gradient, tensors, out, upstream, absolute, square)


def _map(
    function: Any, tensors: Sequence[Tensor], out: Sequence[Tensor], scale: Tensor | None, first: float, second: float
) -> None:
    device = tensors[0].device
    with guard(device):
        work = work_of(tensors, out)
        pointer = work.segments if scale is None else scale
        constants = {"FUNCTION": function, "SCALED": scale is not None}
        shape = architectures.of_device(device).elementwise
        over_chunks(elementwise.elementwise, shape, work, [pointer], [float(first), float(second)], lambda _: constants)


def value(penalty: Penalty, tensors: Sequence[Tensor]) -> Tensor:
    constants = {"FUNCTION": FORMULAS[penalty.formulas].value}
    return _reduced(values.reduce_value, tensors, None, penalty.value, constants, penalty.scale)


def value_gradient(penalty: Penalty, tensors: Sequence[Tensor], out: Sequence[Tensor], upstream: Tensor) -> None:
    device = tensors[0].device
    with guard(device):
        shape, constants = architectures.of_device(device).elementwise, {"FUNCTION": FORMULAS[penalty.formulas].slope}
        work = work_of(tensors, out)
        over_chunks(values.slope, shape, work, [upstream], penalty.slope, lambda _: constants)


def weighted(tensors: Sequence[Tensor], factors: Sequence[Tensor], strength: float) -> Tensor:
    """``strength * sum factor * |w|``; ``factors`` are in the compute type and in the layout of ``tensors``. Their values are
    not looked at: that would make the host wait."""
    return _reduced(values.reduce_weighted, tensors, factors, (), {}, strength)


def weighted_gradient(
    tensors: Sequence[Tensor], factors: Sequence[Tensor], out: Sequence[Tensor], upstream: Tensor, strength: float
) -> None:
    device = tensors[0].device
    with guard(device):
        shape, work = architectures.of_device(device).elementwise, work_of(tensors, out, factors)
        over_chunks(values.slope_weighted, shape, work, [upstream], [strength], lambda _: {})


def _reduced(
    kernel: Any,
    tensors: Sequence[Tensor],
    operands: Sequence[Tensor] | None,
    numbers: Sequence[float],
    constants: dict[str, Any],
    scale: float,
) -> Tensor:
    device = tensors[0].device
    with guard(device):
        work = work_of(tensors, tensors, operands)
        partials = empty(device, work.layout.chunks)
        shape = architectures.of_device(
            device
        ).elementwise  # of `reduce` the logarithm's numbers would not fit into registers
        over_chunks(kernel, shape, work, [partials], numbers, lambda _: constants)
        return _total(partials, scale, tensors)


def _total(partials: Tensor, scale: float, tensors: Sequence[Tensor]) -> Tensor:
    out = torch.empty((), dtype=reference.penalty_dtype(tensors), device=partials.device)
    shape = architectures.of_device(out.device).second_stage
    launch(values.total, (1,), shape, torch.float64, partials, out, len(partials), scale)
    return out


def group_norms(
    tensors: Sequence[Tensor], layouts: Sequence[GroupLayout], scales: Sequence[float], norms: Sequence[Tensor]
) -> Tensor:
    device = tensors[0].device
    with guard(device):
        table = _Table(tensors, layouts, scales, norms, tensors)
        partials = empty(device, table.partials)
        table.launch(groups.group_squares, "tiles", [partials])
        totals = empty(device, int(table.programs["blocks"].sum()))
        shape = architectures.of_device(device).elementwise
        if len(totals):
            owners = table.owners("blocks")
            launch(groups.group_norms, (len(totals),), shape, torch.float64, table.rows, owners, partials, totals)
        for unused in (of for of, w in zip(norms, tensors, strict=True) if w.numel() == 0):
            unused.zero_()
        return _total(totals, 1.0, tensors)


def group_gradient(
    tensors: Sequence[Tensor],
    layouts: Sequence[GroupLayout],
    scales: Sequence[float],
    norms: Sequence[Tensor],
    out: Sequence[Tensor],
    upstream: Tensor,
) -> None:
    device = tensors[0].device
    with guard(device):
        _Table(tensors, layouts, scales, norms, out).launch(groups.group_gradient, "chunks", [upstream])


class _Table:
    """Dense tensors and their groups, in device memory; those that take the same kernel side by side, empty ones left out."""

    def __init__(
        self,
        tensors: Sequence[Tensor],
        layouts: Sequence[GroupLayout],
        scales: Sequence[float],
        norms: Sequence[Tensor],
        out: Sequence[Tensor],
    ) -> None:
        self._device = tensors[0].device
        listed = [row for row in zip(tensors, layouts, scales, norms, out, strict=True) if row[0].numel()]
        for dtype in {w.dtype for w, *_ in listed}:
            check_dtype(self._device, dtype, "a tensor")
        listed.sort(key=lambda row: (DTYPES.index(row[0].dtype), _across(row[1])))
        self._kinds = [(w.dtype, _across(layout)) for w, layout, *_ in listed]
        of = numpy.array([layout for _, layout, *_ in listed], dtype=numpy.int64).reshape(-1, 3)
        across = numpy.array([across for _, across in self._kinds], dtype=numpy.int64)
        outer, count, inner = of.T
        size = outer * inner
        pieces = -(-size // (groups.CHUNK.value // across))
        self.programs = {
            "tiles": -(-count // across) * pieces,
            "blocks": -(-count // groups.NORMS_AT_A_TIME.value),
            "chunks": -(-(size * count) // groups.CHUNK.value),
        }
        partials = count * pieces
        self.partials = int(partials.sum())
        addresses = numpy.array(
            [(w.data_ptr(), o.data_ptr(), norm.data_ptr()) for w, _, _, norm, o in listed], dtype=numpy.int64
        ).reshape(-1, 3)
        factors = numpy.array([scale for _, _, scale, *_ in listed], dtype=numpy.float64).view(numpy.int64)
        first = [numbers.cumsum() - numbers for numbers in (partials, *self.programs.values())]
        layout = [size * count, count, inner, size, pieces, first[0], factors, *first[1:]]
        rows = numpy.column_stack([addresses, *layout])
        assert rows.shape[1] == len(groups.FIELDS)
        self.rows = upload(rows, self._device)

    def owners(self, programs: str) -> Tensor:
        """The row of each program's tensor."""
        rows = numpy.arange(len(self._kinds), dtype=numpy.int32)
        return upload(numpy.repeat(rows, self.programs[programs]), self._device)

    def launch(self, kernel: Any, programs: str, pointers: Sequence[Tensor]) -> None:
        """One launch per dtype, and where tiles are asked for, per width of a tile."""
        if not self._kinds:
            return
        owners = self.owners(programs)
        shape = architectures.of_device(self._device).elementwise
        first = 0
        for kind, rows in groupby(
            range(len(self._kinds)), lambda row: self._kinds[row][: 2 if programs == "tiles" else 1]
        ):
            count = int(self.programs[programs][list(rows)].sum())
            constants = {"ACROSS": kind[1]} if programs == "tiles" else {}
            launch(
                kernel,
                (count,),
                shape,
                torch.float32,
                self.rows,
                owners,
                *pointers,
                first,
                **constants,
                STORAGE=TYPES[kind[0]],
                COMPUTE=TYPES[reference.compute_dtype(kind[0])],
            )
            first += count


def _across(layout: GroupLayout) -> int:
    """How many groups a tile has: few where a run of their elements is longer than a cache line."""
    return (groups.COLUMNS if layout.inner < 32 and layout.groups > 1 else groups.ROWS).value
