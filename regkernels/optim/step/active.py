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
from regkernels.table.hyper import Hyper, on_host
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
        self._first = [entry.first for entry in entries]
        self._split = torch.tensor([entry.split for entry in entries], dtype=torch.int64, device="cpu")
        self.splits = bool(self._split.any())
        self._row_keys: list[int] = []  # of each row an entry that has it
        self._mask = torch.zeros(0, dtype=torch.bool, device="cpu")
        self._all, self.params = True, list[Tensor]()
        self.generation = 0
        self.look()

    def look(self) -> None:
        """Finds everything anew, after addresses in the table have changed."""
        self.generation += 1
        mask = self._table[:, segments.GRADIENT] != 0
        if not torch.equal(mask, self._mask):
            pairs = zip(self._entries, mask.tolist(), strict=True)
            self.params = [entry.param for entry, is_active in pairs if is_active]
            self._find_rows(mask)
            self._all = bool(mask.all())
            self._mask = mask  # last: until then, all of it is done again
        if self._pieces is not None:
            table, owners = self._pieces.cut(self._table, mask)
            self.segments = segments.merge(table, self._may_follow[owners])
        elif self._all:
            self.segments = segments.merge(self._table, self._may_follow)
        else:
            self.segments = segments.merge(self._table[mask], self._may_follow[mask])

    def _find_rows(self, mask: Tensor) -> None:
        """Finds the distinct rows of what has a gradient, and writes their numbers into the table."""
        # One number per (param group, split, step count, first): equal rows are found without a loop over parameters.
        key = 2 * self._param_group_of + self._split
        if self._counts is not None:
            key = key * len(key) + self._counts.classes()  # fewer than there are entries
        key = 2 * key + torch.tensor(self._first, dtype=torch.int64, device="cpu")
        members = mask.nonzero().flatten()
        keys, row = key[members].unique(return_inverse=True)
        self._row_keys = torch.full_like(keys, len(key)).scatter_reduce_(0, row, members, "amin").tolist()
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
        entries, counts = self._entries, self._counts
        return [Row(entries[i].group, counts.next(i) if counts else 0, self._first[i]) for i in self._row_keys]

    def first_steps_are_made(self) -> None:
        """Notes that no active entry's next step is its first."""
        if any(self._first[index] for index in self._row_keys):
            pairs = zip(self._first, self._mask.tolist(), strict=True)
            self._first = [first and not is_active for first, is_active in pairs]

    def entries(self) -> Iterator[tuple[Entry, int]]:
        """Yields each entry of the next step, with the index of its row."""
        for index in self._mask.nonzero().flatten().tolist():
            yield self._entries[index], int(self._table[index, segments.ROW])

    def split_entries(self, rows: Sequence[Hyper], device: torch.device) -> Iterator[tuple[Entry, Hyper]]:
        """Yields the entries that `regkernels.optim.step.split_groups` updates, with their rows in numbers; waits for ``device`` where it
        knows one of them."""
        if self.splits:
            known = on_host(rows, device)
            yield from ((entry, known[row]) for entry, row in self.entries() if entry.split)

    def rows_of_kernels(self, rows: list[Hyper]) -> list[Hyper]:
        """Returns the rows that kernels get, which only form the sums of these entries."""
        if not self.splits:
            return rows
        pairs = zip(rows, self._row_keys, strict=True)
        return [row._replace(skip=1.0) if self._entries[index].split else row for row, index in pairs]
