"""Counts the steps of all parameters of a plan, side by side: that is one operation, however many there are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regkernels.optim.step.entry import Entry
from regkernels.table.hyper import Number
from regkernels.table.upload import is_capturing, upload


class HostCounts:
    """Counts on the CPU, where the bias corrections are computed."""

    def __init__(self, entries: Sequence[Entry], *, keep: bool) -> None:
        """Takes over the counts of entries. ``keep``: whoever holds the tensor of one goes on seeing it, where that is possible."""
        wanted = dtype()
        self._steps = torch.tensor(_values(entries), dtype=wanted, device="cpu")
        self._expected = self._steps.clone()
        for entry, step in zip(entries, self._steps.unbind(), strict=True):
            old = entry.state.get("step")
            if keep and isinstance(old, Tensor) and old.dtype == wanted and old.dim() == 0 and old.is_cpu:
                old.set_(step.untyped_storage(), step.storage_offset(), (), ())
            else:
                entry.state["step"] = step

    def address(self, index: int) -> int:
        """Returns where the count of an entry lies."""
        return self._steps.data_ptr() + index * self._steps.element_size()

    def classes(self) -> Tensor:
        """Returns a number for each entry, int64; entries with the same number have the same count."""
        return self._steps.to(torch.int64)

    def next(self, index: int) -> int | Tensor:
        """Returns the number of the step to come, from 1; on a device a float64 tensor."""
        return int(self._steps[index]) + 1

    def were_set(self) -> bool:
        """Tells whether somebody else has changed a count."""
        return not torch.equal(self._steps, self._expected)

    def advance(self, active: Tensor | None, skip: Number) -> None:
        """Counts a step of the entries in the mask ``active``, of all for None. ``skip``: 0, as the host knows it here."""
        increment = 1 if active is None else active.to(self._steps.dtype)
        self._steps += increment
        self._expected += increment


class DeviceCounts:
    """Does what `HostCounts` does on the device, where the replays of a CUDA graph advance counts unseen by Python.

    A count never moves: a graph that was captured goes on counting there. Entries that come later get a block of their own.
    What the host knows is which entries have always been counted together. Those that have not are taken for different
    from then on, although their counts may happen to be equal.
    """

    def __init__(self, entries: Sequence[Entry], device: torch.device, before: DeviceCounts | None) -> None:
        self._blocks: list[Tensor] = [] if before is None else list(before._blocks)
        places = [self._find(entry) for entry in entries]
        new = [entry for entry, place in zip(entries, places, strict=True) if place is None]
        if new:
            values = torch.tensor(_values(new), dtype=dtype(), device="cpu")
            self._blocks.append(upload(values.numpy(), device))
            for entry, step in zip(new, self._blocks[-1].unbind(), strict=True):
                entry.state["step"] = step
        places_of_new = ((len(self._blocks) - 1, index) for index in range(len(new)))
        self._places = [place or next(places_of_new) for place in places]
        if before is None or before.were_set():
            known: list[object] = list(_values(entries))
        else:
            classes = dict(zip(before._places, before._classes.tolist(), strict=True))
            values_of_new = iter(values.tolist() if new else [])
            known = [
                f"new {next(values_of_new)}" if place is None else classes.get(place, f"left {place}")
                for place in places
            ]
        numbers = {value: number for number, value in enumerate(dict.fromkeys(known))}
        self._classes: Tensor = torch.tensor([numbers[value] for value in known], dtype=torch.int64, device="cpu")
        self._versions = [block._version for block in self._blocks]
        self._masks: tuple[Tensor | None, list[Tensor | int]] = (None, [])

    def _find(self, entry: Entry) -> tuple[int, int] | None:
        """Returns block and index of an entry's count, where it has one already."""
        step = entry.state.get("step")
        if isinstance(step, Tensor):
            for number, block in enumerate(self._blocks):
                index, rest = divmod(step.data_ptr() - block.data_ptr(), block.element_size())
                if step.dtype == block.dtype and step.device == block.device and not rest and 0 <= index < len(block):
                    return number, index
        return None

    def address(self, index: int) -> int:
        number, place = self._places[index]
        return self._blocks[number].data_ptr() + place * self._blocks[number].element_size()

    def classes(self) -> Tensor:
        return self._classes

    def next(self, index: int) -> int | Tensor:
        number, place = self._places[index]
        return self._blocks[number][place].double() + 1.0

    def were_set(self) -> bool:
        return [block._version for block in self._blocks] != self._versions

    def advance(self, active: Tensor | None, skip: Number) -> None:
        """Counts a step. ``skip``: 0, or a number on the device that is not 0 where no step is to be counted."""
        for block, increment in zip(self._blocks, self._increments(active), strict=True):
            block += increment * (skip == 0).to(block.dtype) if isinstance(skip, Tensor) else increment
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


def dtype() -> torch.dtype:
    """Returns the type of a count: torch's."""
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32


def _all(active: Tensor | None, count: int) -> list[bool]:
    return [True] * count if active is None else active.tolist()


def _values(entries: Sequence[Entry]) -> list[float]:
    """Returns the counts that the entries' states say; waits for devices that they are on."""
    # A momentum buffer without a count comes from a run that did not count: its first step is over.
    missing = [float("momentum_buffer" in entry.state and not entry.first) for entry in entries]
    values = [entry.state.get("step", value) for entry, value in zip(entries, missing, strict=True)]
    elsewhere: dict[torch.device, list[int]] = {}
    for index, value in enumerate(values):
        if isinstance(value, Tensor) and not value.is_cpu:
            elsewhere.setdefault(value.device, []).append(index)
    for indices in elsewhere.values():  # all of a device in one copy, which waits for it
        found = torch.stack([values[index].detach().float().reshape(()) for index in indices]).tolist()
        for index, value in zip(indices, found, strict=True):
            values[index] = value
    return [float(value) for value in values]
