"""Counts the steps of all parameters of a plan, side by side: that is one operation, however many there are.

A count stays where it is if it can be used there, so that whoever holds its tensor, another process included, sees it and may
set it. Counts that random numbers depend on are float64: a float32 stands still at 2**24, and with it the random bits. All
others are of torch's type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from regkernels import validation
from regkernels.memory import own_storage
from regkernels.optim.step.entry import Entry
from regkernels.table.batch import in_one_go
from regkernels.table.deferred import Deferred
from regkernels.table.formats import Format
from regkernels.table.hyper import Scalar
from regkernels.table.upload import is_capturing, upload


class Places:
    """Finds where the counts of entries lie, or makes room for them.

    Attributes:
        blocks: vectors of counts: those of a plan before, one around each count that stays where it is, those that are new.
        of: for each entry, which block, and the index in it.
        values: of entries whose counts are in none of the blocks of a plan before, by the entry's index.
    """

    def __init__(
        self, entries: Sequence[Entry], device: torch.device, before: Sequence[Tensor], *, move: bool, own: bool
    ) -> None:
        """Puts new counts into `Entry.made`.

        ``before``: blocks of a plan before. ``move``: counts elsewhere are copied, so that they lie side by side, unless other
        processes see them. ``own``: each new count is a storage of its own, not a view, whose block has its version.
        """
        self.blocks = list(before)
        known = _addresses(before)
        found = [_address(entry, device) for entry in entries]
        for index in _repeated(found):  # several entries with one count; each has its own from now on
            found[index] = None
        unknown = [index for index, address in enumerate(found) if known.get(address) is None]
        self.values = dict(zip(unknown, _values([entries[index] for index in unknown]), strict=True))
        fresh = []
        for index in unknown:
            step: Any = entries[index].state.get("step")
            if found[index] is not None and (not move or step.is_shared()):
                known[found[index]] = (len(self.blocks), 0)
                self.blocks.append(step.detach().view(1))
            else:
                fresh.append(index)
                found[index] = None
        self.of = [known.get(address, (0, 0)) for address in found]  # of those that are None see below
        counts = [(self.values[index], count_dtype(entries[index].format)) for index in fresh]
        steps, blocks = side_by_side(counts, device, own=own)
        made = _addresses(blocks)
        for index, step in zip(fresh, steps, strict=True):
            number, place = made[step.data_ptr(), step.dtype]
            self.of[index] = (len(self.blocks) + number, place)
            entries[index].made["step"] = step
        self.blocks += blocks


class HostCounts:
    """Counts on the CPU, where the bias corrections are computed."""

    _blocks: list[Tensor]

    def __init__(self, entries: Sequence[Entry], before: HostCounts | Sequence[Tensor], *, move: bool) -> None:
        """Takes over the counts of entries. ``before``: of the plan that is replaced, or blocks of counts; ``move``: see `Places`."""
        blocks = before._blocks if isinstance(before, HostCounts) else before
        places = Places(entries, torch.device("cpu"), blocks, move=move, own=True)
        used = sorted({number for number, _ in places.of})
        self._blocks = [places.blocks[number] for number in used] or [torch.zeros(0, device="cpu")]
        starts, begin = {}, 0
        for number, block in zip(used, self._blocks, strict=False):
            starts[number] = begin
            begin += len(block)
        self._places = [starts[n] + index for n, index in places.of]
        self._order = torch.tensor(self._places, dtype=torch.int64, device="cpu")
        self._are_all = begin == len(entries)
        self._expected = self._now().clone()
        self._masks: tuple[Tensor | None, list[Tensor]] = (None, [])

    def _now(self) -> Tensor:
        """Returns all counts, in the order of the blocks."""
        return self._blocks[0] if len(self._blocks) == 1 else torch.cat(self._blocks)

    def classes(self) -> Tensor:
        """Returns a number for each entry, int64, below how many there are; entries with the same number have the same count."""
        return self._now()[self._order].unique(return_inverse=True)[1]

    def next(self, index: int) -> int | Deferred:
        """Returns the number of the step to come, from 1."""
        return int(self._now()[self._places[index]]) + 1

    def were_set(self) -> bool:
        """Tells whether somebody else has changed a count."""
        return not torch.equal(self._now(), self._expected)

    def advance(self, active: Tensor | None, skip: Scalar, then: Callable[[], object]) -> None:
        """Counts a step of the entries in the mask ``active``, of all for None; then calls ``then``, and no interrupt comes between.

        ``skip``: 0, as the host knows it here.
        """
        if active is None and self._are_all:
            in_one_go(partial(torch._foreach_add_, self._blocks, 1), then)
            self._expected += 1
            return
        if self._masks[0] is not active or not self._masks[1]:
            mask = torch.zeros_like(self._expected)
            mask[self._order] = 1 if active is None else active.to(mask.dtype)
            self._masks = (active, list(mask.split([len(block) for block in self._blocks])))
        in_one_go(partial(torch._foreach_add_, self._blocks, self._masks[1]), then)
        self._expected += torch.cat(self._masks[1])


class DeviceCounts:
    """Does what `HostCounts` does on the device, where the replays of a CUDA graph advance counts unseen by Python.

    A count never moves: a graph that was captured goes on counting there. Entries that come later get a block of their own.
    What the host knows is which entries have always been counted together. Those that have not are taken for different
    from then on, although their counts may happen to be equal.
    """

    _blocks: list[Tensor]

    def __init__(
        self, entries: Sequence[Entry], device: torch.device, before: DeviceCounts | None, *, move: bool
    ) -> None:
        found = Places(entries, device, [] if before is None else before._blocks, move=move, own=False)
        self._blocks, self._places = found.blocks, found.of
        if before is None or before.were_set():
            known: list[object] = list(_values(entries))
        else:
            classes = dict(zip(before._places, before._classes.tolist(), strict=True))
            known = [
                f"new {found.values[index]}" if index in found.values else classes.get(place, f"left {place}")
                for index, place in enumerate(self._places)
            ]
        numbers = {value: number for number, value in enumerate(dict.fromkeys(known))}
        self._classes: Tensor = torch.tensor([numbers[value] for value in known], dtype=torch.int64, device="cpu")
        self._versions = [block._version for block in self._blocks]
        self._masks: tuple[Tensor | None, list[Tensor | int]] = (None, [])

    def classes(self) -> Tensor:
        return self._classes

    def next(self, index: int) -> int | Deferred:
        number, place = self._places[index]
        return Deferred.of(self._blocks[number][place]) + 1.0

    def were_set(self) -> bool:
        return [block._version for block in self._blocks] != self._versions

    def advance(self, active: Tensor | None, skip: Scalar, then: Callable[[], object]) -> None:
        """Counts a step. ``skip``: 0, or a number on the device that is not 0 where no step is to be counted."""
        is_made = skip == 0
        for block, increment in zip(self._blocks, self._increments(active), strict=True):
            if isinstance(is_made, Tensor):
                increment = increment * is_made if isinstance(increment, Tensor) else is_made
            block += increment
        then()
        if active is not None:
            self._classes = (2 * self._classes + active).unique(return_inverse=True)[1]
        self._versions = [block._version for block in self._blocks]

    def _increments(self, active: Tensor | None) -> list[Tensor | int]:
        """Returns what to add to each block: 1, or a mask on the device where some of its counts stay."""
        recorded = bool(self._blocks) and is_capturing(self._blocks[0].device)  # then a mask has to stay for good
        if self._masks[1] and self._masks[0] is active and not recorded:
            return self._masks[1]
        masks = [torch.zeros(len(block), dtype=block.dtype, device="cpu") for block in self._blocks]
        for (number, place), counts in zip(self._places, _all(active, len(self._places)), strict=True):
            masks[number][place] = counts
        increments: list[Tensor | int] = [
            1 if mask.all() else upload(mask.numpy(), self._blocks[0].device) for mask in masks
        ]
        if not recorded:
            self._masks = (active, increments)
        return increments


Counts = HostCounts | DeviceCounts


def side_by_side(
    counts: Sequence[tuple[float, torch.dtype]], device: torch.device, *, own: bool = True
) -> tuple[list[Tensor], list[Tensor]]:
    """Returns a tensor for each count, 0-dim, and the blocks that they lie in, one per dtype.

    ``own``: each is a storage of its own, else a view.
    """
    steps: dict[int, Tensor] = {}
    blocks = []
    for dtype in dict.fromkeys(dtype for _, dtype in counts):
        members = [index for index, count in enumerate(counts) if count[1] == dtype]
        block = upload(torch.tensor([counts[index][0] for index in members], dtype=dtype, device="cpu").numpy(), device)
        steps.update((index, own_storage(block[i]) if own else block[i]) for i, index in enumerate(members))
        blocks.append(block)
    return [steps[index] for index in range(len(counts))], blocks


_Address = tuple[int, torch.dtype]


def _address(entry: Entry, device: torch.device) -> _Address | None:
    """Says where the count of an entry lies; None where it cannot be used there."""
    step = entry.state.get("step")
    if type(step) is not Tensor or step.dim() or step.device != device or step.requires_grad:
        return None
    if step.dtype not in ((torch.float64,) if entry.format.draws else (torch.float32, torch.float64)):
        return None
    return step.data_ptr(), step.dtype


def _addresses(blocks: Sequence[Tensor]) -> dict[_Address | None, tuple[int, int]]:
    """Returns block and index of each count, by where it lies."""
    return {
        (block.data_ptr() + index * block.element_size(), block.dtype): (number, index)
        for number, block in enumerate(blocks)
        for index in range(len(block))
    }


def _repeated(addresses: Sequence[_Address | None]) -> list[int]:
    """Returns the indices of what has stood before."""
    seen: set[_Address | None] = set()
    return [index for index, address in enumerate(addresses) if address in seen or seen.add(address)]  # type: ignore[func-returns-value]


def count_dtype(of: Format) -> torch.dtype:
    """Returns the type of a new count."""
    if of.draws or torch.get_default_dtype() == torch.float64:
        return torch.float64
    return torch.float32


def _all(active: Tensor | None, count: int) -> list[bool]:
    return [True] * count if active is None else active.tolist()


def _values(entries: Sequence[Entry]) -> list[float]:
    """Returns the counts that the entries' states say; waits for devices that they are on."""
    # A momentum buffer without a count comes from a run that did not count: its first step is over.
    missing = [float(entry.state.get("momentum_buffer") is not None) for entry in entries]
    found = [entry.state.get("step") for entry in entries]
    values: list[Any] = [value if step is None else step for step, value in zip(found, missing, strict=True)]
    elsewhere: dict[torch.device, list[int]] = {}
    for index, value in enumerate(values):
        if isinstance(value, Tensor) and not value.is_cpu:
            elsewhere.setdefault(value.device, []).append(index)
    for indices in elsewhere.values():  # all of a device in one copy, which waits for it
        read = torch.stack([values[index].detach().double().reshape(()) for index in indices]).tolist()
        for index, value in zip(indices, read, strict=True):
            validation.step_count(value, entries[index].name)
            values[index] = value
    return [float(value) for value in values]
