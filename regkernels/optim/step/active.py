"""Finds the entries that the next step updates, the rows of hyper-parameters that they need, and the segments they make."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from regkernels.optim.step.counts import Counts
from regkernels.optim.step.entry import Entry
from regkernels.optim.step.protocol import Row
from regkernels.table import segments
from regkernels.table.hyper import Hyper
from regkernels.table.segments import Pieces


class Active:
    """Finds the entries that have a gradient, by a look at the table of all entries, whenever addresses have changed.

    Attributes:
        segments: int64 table (see `regkernels.table.segments`) of what the next step updates.
        generation: another number whenever ``segments`` has changed.
        params: the parameters that are updated.
        splits: whether any entry's groups lie on several ranks.
    """

    def __init__(self, entries: Sequence[Entry], storages: Sequence[int], table: Tensor, counts: Counts | None) -> None:
        """Takes ``storages`` as `Entries` has them, and ``table``, of all entries, whose column of rows is filled here."""
        self._entries, self._table, self._counts = entries, table, counts
        self._param_group_of = torch.tensor([entry.group for entry in entries], dtype=torch.int64, device="cpu")
        same = [a == b for a, b in pairwise(storages)]
        may_follow = zip([False, *same], entries, strict=False)
        self._may_follow = torch.tensor([s and not e.by_groups for s, e in may_follow], dtype=torch.bool, device="cpu")
        self._pieces: Pieces | None = None
        if any(entry.is_cut for entry in entries):
            self._pieces = Pieces.of([entry.pieces for entry in entries])
        self._first = torch.tensor([entry.first for entry in entries], dtype=torch.bool, device="cpu")
        self._split = torch.tensor([entry.split for entry in entries], dtype=torch.int64, device="cpu")
        self.splits = bool(self._split.any())
        self._row_keys: list[tuple[int, int, bool]] = []  # param group, an entry with the row's step count, first
        self._mask = torch.zeros(0, dtype=torch.bool, device="cpu")
        self._all, self.params = True, list[Tensor]()
        self.generation = 0
        self.look()

    def look(self) -> None:
        """Finds everything anew, after addresses in the table have changed."""
        self.generation += 1
        mask = self._table[:, segments.GRADIENT] != 0
        if not torch.equal(mask, self._mask):
            self._mask, self._all = mask, bool(mask.all())
            pairs = zip(self._entries, mask.tolist(), strict=True)
            self.params = [entry.param for entry, is_active in pairs if is_active]
            self._find_rows()
        if self._pieces is not None:
            table, owners = self._pieces.cut(self._table, mask)
            self.segments = segments.merge(table, self._may_follow[owners])
        elif self._all:
            self.segments = segments.merge(self._table, self._may_follow)
        else:
            self.segments = segments.merge(self._table[mask], self._may_follow[mask])

    def _find_rows(self) -> None:
        """Finds the distinct rows of what has a gradient, and writes their numbers into the table."""
        # One number per (param group, split, step count, first): equal rows are found without a loop over parameters.
        key = (self._param_group_of << 41) + (self._split << 40)
        if self._counts is not None:
            key += self._counts.classes() << 1
        key += self._first
        members = self._mask.nonzero().flatten()
        keys, row = key[members].unique(return_inverse=True)
        example = torch.full_like(keys, len(key)).scatter_reduce_(0, row, members, "amin")
        self._row_keys = [
            (key >> 41, index, bool(key & 1)) for key, index in zip(keys.tolist(), example.tolist(), strict=True)
        ]
        self._table[members, segments.ROW] = row

    @property
    def mask(self) -> Tensor | None:
        """Tells which entries are updated: bool, one for each; None where all are."""
        return None if self._all else self._mask

    @property
    def has_rows(self) -> bool:
        """Tells whether the next step updates anything."""
        return bool(self._row_keys)

    @property
    def rows(self) -> list[Row]:
        """Returns the distinct rows that the next step needs, in the order of `segments`' row column."""
        return [Row(group, self._counts.next(i) if self._counts else 0, first) for group, i, first in self._row_keys]

    def first_steps_are_made(self) -> None:
        """Notes that no active entry's next step is its first."""
        if any(first for _, _, first in self._row_keys):
            self._first[self._mask] = False
            self._row_keys = [(group, index, False) for group, index, _ in self._row_keys]

    def entries(self) -> Iterator[tuple[Entry, int]]:
        """Yields each entry of the next step, with the index of its row."""
        for index in self._mask.nonzero().flatten().tolist():
            yield self._entries[index], int(self._table[index, segments.ROW])

    def split_entries(self, rows: Sequence[Hyper]) -> Iterator[tuple[Entry, Hyper]]:
        """Yields the entries that `regkernels.optim.step.split_groups` updates, with their rows."""
        if self.splits:
            yield from ((entry, rows[row]) for entry, row in self.entries() if entry.split)

    def rows_of_kernels(self, rows: list[Hyper]) -> list[Hyper]:
        """Returns the rows that kernels get, which only form the sums of these entries."""
        if not self.splits:
            return rows
        pairs = zip(rows, self._row_keys, strict=True)
        return [row._replace(skip=1.0) if self._entries[index].split else row for row, (_, index, _) in pairs]
