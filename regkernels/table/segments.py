"""Makes tables of segments, which kernels work on, and of sums, which they form on the way.

The unit of work is a *segment*: a contiguous run of elements with the addresses of its weight, gradient and states, and
the row of its hyper-parameters. A segment starts as one parameter; neighbours that are adjacent in all their buffers and
share a row are merged, which is what makes `regkernels.FlatParameters` fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from regkernels.table.formats import DTYPES, FORMATS, KEPT_DTYPES, compute_dtype, format_of


class Segment(NamedTuple):
    """One row of a table: a contiguous run of elements, the addresses of its buffers, and what is done to it."""

    weight: int = 0
    gradient: int = 0
    state0: int = 0
    state1: int = 0
    state2: int = 0
    kept: int = 0  # what rounding takes from the weights: a remainder or a master copy
    l1_weight: int = 0  # of each element's l1, in the compute type
    numel: int = 0
    row: int = 0  # of hyper-parameters
    total: int = 0  # which sums it is added to
    stream: int = 0  # the parameter's number, where random numbers are needed
    place: int = 0  # of the first element in the whole parameter, of which this may be a part
    gap: int = 0  # elements of other parts between one o and the next, see groups
    groups: int = 0  # element (o * groups + g) * inner + i belongs to group g
    inner: int = 0
    kind: int = (
        0  # what selects a kernel, see `regkernels.reference.kinds`; here only the format in it counts, kind % FORMATS
    )


FIELDS = Segment._fields
"""Columns of a table of segments (int64), in the order of csrc/lists.h."""

SUMS = ("absolute", "square", "nonzeros", "gradient", "zero_groups")
"""Columns of a table of sums (float64), in the order of csrc/lists.h."""

WEIGHT, GRADIENT, STATE0, KEPT, L1_WEIGHT, NUMEL, ROW, TOTAL, STREAM, PLACE, GAP, GROUPS, INNER, KIND = (
    FIELDS.index(name) for name in FIELDS if name not in ("state1", "state2")
)

EMPTY = 1
"""Stands for the address of a gradient without elements; 0 stands for a gradient that is None."""


def addresses(states: Sequence[Tensor]) -> tuple[int, int, int]:
    """Returns where up to three tensors begin, for the columns from ``state0`` on; 0 for those that there are not."""
    first, second, third = (*(state.data_ptr() for state in states), 0, 0, 0)[:3]
    return first, second, third


def table(listed: Sequence[Segment]) -> Tensor:
    """Returns a table of segments, int64 (segments, len(FIELDS))."""
    if not listed:
        return torch.zeros(0, len(FIELDS), dtype=torch.int64, device="cpu")
    return torch.tensor(listed, dtype=torch.int64, device="cpu")


Total = TypeVar("Total", int, Tensor)


def class_of_total(total: Total, totals: int, classes: int) -> Total:
    """Returns the class of parameters (see `regkernels.distributed.sums`) that a total, or each of a tensor, is one of.

    Of ``totals``, the first belong to the first of ``classes``, as many to the second, and so on.
    """
    return total // (totals // classes)


def no_sums(totals: int) -> list[list[float]]:
    """Returns a table of sums in which nothing has been added yet: zeros, for each total one of SUMS each."""
    return [[0.0] * len(SUMS) for _ in range(totals)]


def add_sums(table: list[list[float]], total: int, found: Sequence[float]) -> None:
    """Adds ``found``, a number for each of SUMS, to one total of a table of sums."""
    table[total] = [before + value for before, value in zip(table[total], found, strict=True)]


def _widths_of(dtype: torch.dtype, narrow: bool, rounding: str) -> list[int]:
    """Returns the bytes of an element in each column from ``weight`` to ``l1_weight``."""
    compute = compute_dtype(dtype).itemsize
    state = 2 if narrow else compute
    kept = KEPT_DTYPES[rounding].itemsize if rounding in KEPT_DTYPES else 0
    return [dtype.itemsize] * 2 + [state] * (KEPT - STATE0) + [kept, compute]


_WIDTHS = torch.tensor([_widths_of(*format_of(number)) for number in range(FORMATS)], device="cpu")


class Runs(NamedTuple):
    """Describes elements side by side in memory, as runs of consecutive places in the whole parameter. Both int64, (runs,)."""

    places: Tensor  # of the first element of each
    lengths: Tensor

    @classmethod
    def one(cls, place: int, length: int) -> Runs:
        """Makes a single run."""
        return cls(torch.tensor([place], device="cpu"), torch.tensor([length], device="cpu"))

    def joined(self) -> Runs:
        """Returns the same elements in as few runs as can be."""
        if len(self.places) < 2:
            return self
        starts = torch.ones(len(self.places), dtype=torch.bool, device="cpu")
        starts[1:] = self.places[1:] != self.places[:-1] + self.lengths[:-1]
        places = self.places[starts]
        return Runs(places, torch.zeros_like(places).index_add_(0, starts.cumsum(0) - 1, self.lengths))

    def of_elements(self) -> Tensor:
        """Returns the place of each element; int64."""
        before = self.lengths.cumsum(0) - self.lengths
        first = (self.places - before).repeat_interleave(self.lengths)
        return first + torch.arange(len(first), device="cpu")


class Pieces(NamedTuple):
    """Lists the pieces that segments are cut into. All int64, (pieces,)."""

    owners: Tensor  # the segment that is cut
    offsets: Tensor  # elements of it that lie before
    lengths: Tensor
    places: Tensor

    @classmethod
    def of(cls, runs: Sequence[Runs]) -> Pieces:
        """Cuts each segment by its ``runs``, of which there is one at least; where there is one, the segment stays whole."""
        counts = torch.tensor([len(own.places) for own in runs], device="cpu")
        owners = torch.arange(len(runs), device="cpu").repeat_interleave(counts)
        places, lengths = (torch.cat(column) for column in zip(*runs, strict=True))
        before = lengths.cumsum(0) - lengths
        first = counts.cumsum(0) - counts
        return cls(owners, before - before[first].repeat_interleave(counts), lengths, places)

    def cut(self, table: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the pieces of the segments that are ``chosen``, bool (segments,): their table, and which segment each is of."""
        owners, offsets, lengths, places = (column[chosen[self.owners]] for column in self)
        cut = table[owners]
        addresses = cut[:, WEIGHT:NUMEL]
        addresses += torch.where(addresses == 0, 0, offsets[:, None] * _widths(cut))
        cut[:, NUMEL], cut[:, PLACE] = lengths, places
        return cut, owners


def _widths(table: Tensor) -> Tensor:
    """Returns the bytes of an element in each column from ``weight`` to ``l1_weight``; int64, (segments, columns)."""
    return _WIDTHS[table[:, KIND] % FORMATS]


def dtype_numbers(kinds: Tensor) -> Tensor:
    """Returns the index in `regkernels.table.formats.DTYPES` of each of some numbers of kinds."""
    return kinds % FORMATS // (FORMATS // len(DTYPES))


def merge(table: Tensor, may_follow: Tensor) -> Tensor:
    """Joins each segment with the one before it where they are adjacent in all buffers and agree in everything else.

    ``table``: int64, (segments, len(FIELDS)), not changed. ``may_follow``: bool, (segments,): False where two neighbours lie
    side by side by chance of the allocator only. Merging those would make a sum depend on that chance.
    """
    if len(table) < 2 or not bool(may_follow[1:].any()):
        return table
    before, after = table[:-1], table[1:]
    joined = may_follow[1:] & (before[:, ROW:] == after[:, ROW:]).all(1)
    addresses = before[:, WEIGHT:NUMEL]
    ends = addresses + before[:, NUMEL, None] * _widths(before)
    joined &= torch.where(addresses == 0, 0, ends).eq(after[:, WEIGHT:NUMEL]).all(1)
    starts = torch.cat([joined.new_ones(1), ~joined])
    merged = table[starts].clone()
    merged[:, NUMEL] = torch.zeros(len(merged), dtype=torch.int64, device="cpu").index_add_(
        0, starts.cumsum(0) - 1, table[:, NUMEL]
    )
    return merged
