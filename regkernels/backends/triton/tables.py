"""Makes tables in device memory: which chunks there are, and where their segments lie.

Made with NumPy: torch shares even small index operations out among threads, and waiting for those takes milliseconds on a
machine whose cores are busy.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from regkernels.backends.gpu import check_dtype
from regkernels.backends.triton.cuts import ALIGNMENT, CUTS, Cut, Integers, cuts_of, programs
from regkernels.backends.triton.kernels.columns import CHUNK, FIELDS
from regkernels.table import segments
from regkernels.table.formats import FORMATS, format_number
from regkernels.table.upload import stream, upload


def _shifted(table: Integers) -> Integers:
    """Returns 1 for each segment whose elements do not begin with the first of those that share a random counter, else 0."""
    return ((table[:, segments.PLACE] % 8 != 0) & (table[:, segments.GROUPS] == 0)).astype(numpy.int64)


MANY, RUN = 16384, 4096
"""Of more chunks than so many, sums are first formed over runs of so many neighbours, in a launch of their own: one program would take
longer for all of them than that launch."""


def runs_of(ranges: Integers) -> tuple[Integers, Integers]:
    """Cuts each range into runs of `RUN`; returns these, (runs, 2), and which of them each range has, in the shape of ``ranges``."""
    first, end = ranges.reshape(-1, 2).T.astype(numpy.int64)
    count = -(-(end - first) // RUN)
    after = count.cumsum()
    of_range = numpy.repeat(numpy.arange(len(count)), count)
    begin = first[of_range] + (numpy.arange(len(of_range)) - (after - count)[of_range]) * RUN
    runs = numpy.column_stack([begin, numpy.minimum(begin + RUN, end[of_range])])
    return runs.astype(numpy.int32), numpy.column_stack([after - count, after]).reshape(ranges.shape).astype(
        numpy.int32
    )


class Launch(NamedTuple):
    """Describes a launch. Segments of one kind, cut and shift are neighbours in the table, and so are their chunks."""

    kind: int  # the number of a `regkernels.reference.kinds.Kind`
    first_chunk: int
    chunks: int
    cut: Cut  # without groups, chunks are of so many elements
    shifted: bool


class Layout(NamedTuple):
    """Says how a table of segments is cut into chunks. Depends on sizes, kinds and groups; on addresses only in that groups may lie
    so that 16 bytes are moved at a time."""

    order: Integers  # of the segments: those of a launch side by side, empty ones left out
    cuts: Integers  # the index in `cuts.CUTS` of each segment in that order
    first: Integers  # chunk of each segment in that order
    owners: Integers  # int32 (chunks,): the segment of each chunk
    ranges: (
        Integers  # int32 (totals, launches, 2): first chunk, or run, and the one after the last of a total in a launch
    )
    runs: Integers  # int32 (runs, 2): first chunk and the one after the last of each run; none where chunks are few
    launches: list[Launch]
    chunks: int

    @classmethod
    def of(cls, table: Integers, totals: int) -> Layout:
        """Cuts ``table``: int64 (segments, len(segments.FIELDS)), ordered by total; ``totals``: how many of these there are."""
        filled = numpy.flatnonzero(table[:, segments.NUMEL] > 0)
        keys = (table[filled, segments.KIND] * len(CUTS) + cuts_of(table[filled])) * 2 + _shifted(table[filled])
        order = filled[keys.argsort(kind="stable")]
        ordered = table[order]
        cuts = cuts_of(ordered)
        count = numpy.where(cuts > 0, programs(ordered, cuts), -(-ordered[:, segments.NUMEL] // CHUNK.value))
        end = count.cumsum()
        first = end - count
        owners = numpy.repeat(numpy.arange(len(order), dtype=numpy.int32), count)
        own_keys, start, launch_of = numpy.unique(numpy.sort(keys), return_index=True, return_inverse=True)
        launches = [
            Launch(
                int(key) // (2 * len(CUTS)),
                int(first[begin]),
                int(count[launch_of == index].sum()),
                CUTS[int(key) // 2 % len(CUTS)],
                bool(key % 2),
            )
            for index, (key, begin) in enumerate(zip(own_keys, start, strict=True))
        ]
        # Totals are in order within a launch, so the segments of one (launch, total) are neighbours.
        run = launch_of * totals + ordered[:, segments.TOTAL]
        of_run, begin, length = numpy.unique(run, return_index=True, return_counts=True)
        ranges: Integers = numpy.zeros((totals, len(own_keys), 2), dtype=numpy.int32)
        ranges[of_run % totals, of_run // totals, 0] = first[begin]
        ranges[of_run % totals, of_run // totals, 1] = end[begin + length - 1]
        chunks = int(count.sum())
        runs: Integers = numpy.empty((0, 2), dtype=numpy.int32)
        if chunks > MANY:
            runs, ranges = runs_of(ranges)
        return cls(order, cuts, first, owners, ranges, runs, launches, chunks)

    def fits(self, table: Integers) -> bool:
        """Tells whether a table of the same sizes is cut in the same way, wherever its segments lie."""
        return numpy.array_equal(self.cuts, cuts_of(table[self.order]))

    def addressed(self, table: Integers) -> Integers:
        """Returns the table that kernels read, int64 (segments, len(FIELDS))."""
        ordered = table[self.order]
        addresses = ordered[:, segments.WEIGHT : segments.NUMEL]
        aligned = (addresses % ALIGNMENT == 0).all(axis=1)
        listed = numpy.column_stack([ordered, self.first, aligned])
        assert listed.shape[1] == len(FIELDS)
        return listed


class Work(NamedTuple):
    """Holds a table of segments in device memory, cut into chunks."""

    layout: Layout
    segments: Tensor
    owners: Tensor
    ranges: Tensor
    runs: Tensor | None

    @classmethod
    def of(cls, layout: Layout, table: Integers, device: torch.device) -> Work:
        """Uploads the table and its layout."""
        return cls(
            layout,
            upload(layout.addressed(table), device),
            upload(layout.owners, device),
            upload(layout.ranges, device),
            upload(layout.runs, device) if len(layout.runs) else None,
        )


def in_groups(table: Integers) -> bool:
    """Tells whether any segment is updated by groups."""
    return bool((table[:, segments.GROUPS] > 0).any())


def by_elements(table: Integers) -> Integers:
    """Returns a table of the same segments without their groups, to be cut into chunks of elements."""
    plain = table.copy()
    plain[:, segments.KIND] %= FORMATS  # those of a format in one launch
    plain[:, [segments.GROUPS, segments.PLACE]] = 0
    return plain


class BatchMemory:
    """Holds in device memory what the batches of one producer have in common. Uploaded when it has changed, not before.

    Nothing is kept that was uploaded while a graph was captured: the graph brings its own tables along.
    """

    def __init__(self, device: torch.device, totals: int) -> None:
        self._device, self._totals = device, totals
        self._stream: int | None = None
        self._generation = -1
        self._work: Work | None = None
        self._captured: Work | None = None  # between the gradients' norm and the update of one step
        self._sizes: Integers = numpy.empty(0, dtype=numpy.int64)
        self._known: object = None
        self._rows: Tensor | None = None
        self._of_elements: BatchMemory | None = None

    def work_of_elements(self, table: Integers, generation: int) -> Work:
        """Returns all segments in chunks of elements. To be called before the `work` of the same step."""
        if not in_groups(table):
            return self.work(table, generation, step_follows=True)
        if self._of_elements is None:
            self._of_elements = BatchMemory(self._device, self._totals)
        return self._of_elements.work(by_elements(table), generation)

    def work(self, table: Integers, generation: int, *, step_follows: bool = False) -> Work:
        """Returns ``table`` in device memory, uploaded again where it has changed.

        ``generation`` tells one content of ``table`` from another; ``step_follows``: the same is asked for once more.
        """
        on = self._current_stream()
        if on is None:
            captured = None if step_follows else self._captured
            if captured is None:
                captured = self._laid_out(table)
            self._captured = captured if step_follows else None
            return captured
        self._captured = None
        if self._work is not None and generation == self._generation:
            return self._work
        sizes = table[:, segments.NUMEL :]
        if self._work is not None and numpy.array_equal(sizes, self._sizes) and self._work.layout.fits(table):
            # Only addresses have changed, as gradients' do that are freed and allocated anew.
            layout = self._work.layout
            self._work = self._work._replace(segments=upload(layout.addressed(table), self._device))
        else:
            self._work = self._laid_out(table)
        self._generation, self._sizes = generation, sizes.copy()
        return self._work

    def _laid_out(self, table: Integers) -> Work:
        return Work.of(Layout.of(table, self._totals), table, self._device)

    def rows(self, known: object, table: Callable[[], NDArray[Any]]) -> Tensor:
        """Returns ``table`` in device memory, which is about rows of hyper-parameters. ``known``: tells whether it is the last one."""
        on = self._current_stream()
        if self._rows is not None and on is not None and known == self._known:
            return self._rows
        rows = upload(table(), self._device)
        if on is not None:
            self._known, self._rows = known, rows
        return rows

    def _current_stream(self) -> int | None:
        """Names the stream; None while it is captured. On another one than before, forgets all that was kept."""
        on = stream(self._device)
        if on is not None and on != self._stream:
            self._stream, self._work, self._rows = on, None, None
        return on


_recent: OrderedDict[Any, Work] = OrderedDict()
_REMEMBERED = 16


def work_of(tensors: Sequence[Tensor], out: Sequence[Tensor], operands: Sequence[Tensor] | None = None) -> Work:
    """Lists dense tensors as weights, their outputs in the place of gradients, and operands in that of the first state.

    Remembers the tables of the latest lists.
    """
    device = tensors[0].device
    on = stream(device)
    more = [0] * len(tensors) if operands is None else [operand.data_ptr() for operand in operands]
    columns = zip(tensors, out, more, strict=True)
    buffers = tuple((w.data_ptr(), o.data_ptr(), operand, w.numel(), w.dtype) for w, o, operand in columns)
    key = (device, on, buffers)
    work = _recent.get(key) if on is not None else None
    if work is None:
        for dtype in {w.dtype for w in tensors}:
            check_dtype(device, dtype, "a tensor")
        table = numpy.zeros((len(buffers), len(segments.FIELDS)), dtype=numpy.int64)
        for segment, (w, o, operand, numel, dtype) in zip(table, buffers, strict=True):
            segment[[segments.WEIGHT, segments.GRADIENT, segments.STATE0, segments.NUMEL]] = w, o, operand, numel
            segment[segments.KIND] = format_number(dtype, False, "nearest")
        work = Work.of(Layout.of(table, 1), table, device)
    if on is not None:
        _recent.pop(key, None)  # as another thread may remove it at any time
        _recent[key] = work
        while len(_recent) > _REMEMBERED:
            _recent.popitem(last=False)
    return work
