"""Computes penalties in the loss, and their gradients: one launch per dtype, and one or two that add partial sums."""

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
from regkernels.backends.triton.cuts import ALIGNMENT
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
    _shrunk_or_scaled(elementwise.shrink, [x], [out], None, threshold, 0.0)


def penalty(tensors: Sequence[Tensor], l1: float, l2: float) -> Tensor:
    device = tensors[0].device
    with guard(device):
        work = work_of(tensors, tensors)
        out = torch.empty((), dtype=reference.penalty_dtype(tensors), device=device)
        wanted = "both" if l1 and l2 else "absolute" if l1 else "square"
        second_stage(sums.penalty, (1,), work, reduced(work, columns.WEIGHT, device, wanted), out, l1, l2)
        return out


def penalty_gradient(
    tensors: Sequence[Tensor], out: Sequence[Tensor], upstream: Tensor, absolute: float, square: float
) -> None:
    _shrunk_or_scaled(elementwise.penalty_gradient, tensors, out, upstream, absolute, square)


def _shrunk_or_scaled(
    function: Any, tensors: Sequence[Tensor], out: Sequence[Tensor], scale: Tensor | None, first: float, second: float
) -> None:
    constants = {"FUNCTION": function, "SCALED": scale is not None}
    _map(elementwise.elementwise, tensors, out, None, scale, [float(first), float(second)], constants)


def _map(
    kernel: Any,
    tensors: Sequence[Tensor],
    out: Sequence[Tensor],
    operands: Sequence[Tensor] | None,
    scale: Tensor | None,
    numbers: Sequence[float],
    constants: dict[str, Any],
) -> None:
    """Launches a kernel that computes each element of ``out`` from those of ``tensors`` and ``operands`` in its place.

    ``scale``: the number on the device that it reads; None for one that reads none.
    """
    device = tensors[0].device
    with guard(device):
        work = work_of(tensors, out, operands)
        pointer = work.segments if scale is None else scale
        shape = architectures.of_device(device).elementwise
        over_chunks(kernel, shape, work, [pointer], numbers, lambda _: constants)


def value(penalty: Penalty, tensors: Sequence[Tensor]) -> Tensor:
    constants = {"FUNCTION": FORMULAS[penalty.formulas].value}
    return _reduced(values.reduce_value, tensors, None, penalty.value, constants, penalty.scale)


def value_gradient(penalty: Penalty, tensors: Sequence[Tensor], out: Sequence[Tensor], upstream: Tensor) -> None:
    constants = {"FUNCTION": FORMULAS[penalty.formulas].slope}
    _map(values.slope, tensors, out, None, upstream, penalty.slope, constants)


def weighted(tensors: Sequence[Tensor], factors: Sequence[Tensor], strength: float) -> Tensor:
    # The values of factors are not looked at: that would make the host wait.
    return _reduced(values.reduce_weighted, tensors, factors, (), {}, strength)


def weighted_gradient(
    tensors: Sequence[Tensor], factors: Sequence[Tensor], out: Sequence[Tensor], upstream: Tensor, strength: float
) -> None:
    _map(values.slope_weighted, tensors, out, factors, upstream, [strength], {})


def _reduced(
    kernel: Any,
    tensors: Sequence[Tensor],
    operands: Sequence[Tensor] | None,
    numbers: Sequence[float],
    constants: dict[str, Any],
    scale: float,
) -> Tensor:
    """Returns what a kernel adds up over all elements, times ``scale``: 0-dim."""
    device = tensors[0].device
    with guard(device):
        work = work_of(tensors, tensors, operands)
        partials = empty(device, work.layout.chunks)
        # With the shape of `reduce` the logarithm's numbers would not fit into registers.
        shape = architectures.of_device(device).elementwise
        over_chunks(kernel, shape, work, [partials], numbers, lambda _: constants)
        out = torch.empty((), dtype=reference.penalty_dtype(tensors), device=device)
        second_stage(values.total, (1,), work, partials, out, scale)
        return out


def _total(partials: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Adds partial sums, in the type that the penalty of ``tensors`` has: 0-dim."""
    out = torch.empty((), dtype=reference.penalty_dtype(tensors), device=partials.device)
    shape = architectures.of_device(out.device).second_stage
    launch(values.total, (1,), shape, torch.float64, partials, out, len(partials), 1.0)
    return out


def group_norms(
    tensors: Sequence[Tensor], layouts: Sequence[GroupLayout], scales: Sequence[float], norms: Sequence[Tensor]
) -> Tensor:
    device = tensors[0].device
    with guard(device):
        table = _Table(tensors, layouts, scales, norms, tensors)
        partials = empty(device, table.partials)
        table.launch(groups.group_squares, [partials], only_reads=True)
        totals = empty(device, int(table.programs["blocks"].sum()))
        shape = architectures.of_device(device).elementwise
        if len(totals):
            owners = table.owners("blocks")
            launch(groups.group_norms, (len(totals),), shape, torch.float64, table.listed, owners, partials, totals)
        for unused in (of for of, w in zip(norms, tensors, strict=True) if w.numel() == 0):
            unused.zero_()
        return _total(totals, tensors)


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
        _Table(tensors, layouts, scales, norms, out).launch(groups.group_gradient, [upstream], only_reads=False)


class _Table:
    """Lists dense tensors and their groups in device memory; those that take the same kernel side by side, empty ones left out.

    Attributes:
        listed: int64, (tensors, len(`kernels.group_values.FIELDS`)).
        programs: how many programs each tensor has, in kernels that walk over tiles, and in that of norms.
        partials: how many partial sums of groups there are.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        layouts: Sequence[GroupLayout],
        scales: Sequence[float],
        norms: Sequence[Tensor],
        out: Sequence[Tensor],
    ) -> None:
        self._device = tensors[0].device
        given = [each for each in zip(tensors, layouts, scales, norms, out, strict=True) if each[0].numel()]
        for dtype in {w.dtype for w, *_ in given}:
            check_dtype(self._device, dtype, "a tensor")
        variants = [
            (w.dtype, _across(layout), _is_wide(w, o, layout)) for w, layout, _, _, o in given
        ]  # of the kernels
        order = sorted(range(len(given)), key=lambda k: (DTYPES.index(variants[k][0]), *variants[k][1:]))
        given, self._variants = [given[k] for k in order], [variants[k] for k in order]
        of = numpy.array([layout for _, layout, *_ in given], dtype=numpy.int64).reshape(-1, 3)
        across = numpy.array([across for _, across, _ in self._variants], dtype=numpy.int64)
        outer, count, inner = of.T
        size = outer * inner
        pieces = -(-size // (groups.CHUNK.value // across))
        self.programs = {
            "tiles": -(-count // across) * pieces,
            "blocks": -(-count // groups.NORMS_AT_A_TIME.value),
        }
        partials = count * pieces
        self.partials = int(partials.sum())
        addresses = numpy.array(
            [(w.data_ptr(), o.data_ptr(), norm.data_ptr()) for w, _, _, norm, o in given], dtype=numpy.int64
        ).reshape(-1, 3)
        factors = numpy.array([scale for _, _, scale, *_ in given], dtype=numpy.float64).view(numpy.int64)
        first = [numbers.cumsum() - numbers for numbers in (partials, *self.programs.values())]
        layout = [size * count, count, inner, size, pieces, first[0], factors, *first[1:]]
        listed = numpy.column_stack([addresses, *layout])
        assert listed.shape[1] == len(groups.FIELDS)
        self.listed = upload(listed, self._device)

    def owners(self, programs: str) -> Tensor:
        """Returns the place in `listed` of each program's tensor."""
        places = numpy.arange(len(self._variants), dtype=numpy.int32)
        return upload(numpy.repeat(places, self.programs[programs]), self._device)

    def launch(self, kernel: Any, pointers: Sequence[Tensor], *, only_reads: bool) -> None:
        """Launches a kernel that walks over tiles, once per variant. One that only reads has its loads wait for each other otherwise."""
        owners = self.owners("tiles")
        architecture = architectures.of_device(self._device)
        first = 0
        for (dtype, across, wide), places in groupby(range(len(self._variants)), self._variants.__getitem__):
            count = int(self.programs["tiles"][list(places)].sum())
            launch(
                kernel,
                (count,),
                architecture.reduce,
                torch.float32,
                self.listed,
                owners,
                *pointers,
                first,
                ACROSS=across,
                WIDE=wide,
                PIPELINE=architecture.reduce.stages if only_reads and wide else 1,
                STORAGE=TYPES[dtype],
                COMPUTE=TYPES[reference.compute_dtype(dtype)],
            )
            first += count


def _across(layout: GroupLayout) -> int:
    """Returns how many groups a tile has: few where a run of their elements is longer than a cache line."""
    return (groups.COLUMNS if layout.inner < 32 and layout.groups > 1 else groups.ROWS).value


def _is_wide(tensor: Tensor, out: Tensor, layout: GroupLayout) -> bool:
    """Tells whether 16 bytes can be moved at a time of any dtype."""
    by_columns = _across(layout) == groups.COLUMNS.value
    whole = layout.inner == 1 and layout.groups % 8 == 0 if by_columns else layout.inner % 8 == 0
    return whole and tensor.data_ptr() % ALIGNMENT == out.data_ptr() % ALIGNMENT == 0
