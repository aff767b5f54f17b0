"""Step counts of all parameters of a plan, in one buffer: counting is one operation, however many there are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regkernels.optim.entry import Entry
from regkernels.transfer import upload


class HostCounts:
    """On the CPU, where the bias corrections are computed.

    Attributes:
        steps: finished steps per entry, float.
    """

    def __init__(self, steps: Tensor) -> None:
        self.steps = steps
        self._expected = steps.clone()

    def classes(self) -> Tensor:
        """int64, per entry; entries of one class have the same count."""
        return self.steps.to(torch.int64)

    def next(self, index: int) -> int | Tensor:
        """The number of the step to come, from 1."""
        return int(self.steps[index]) + 1

    def were_set(self) -> bool:
        """Whether somebody else has changed a count."""
        return not torch.equal(self.steps, self._expected)

    def advance(self, active: Tensor | None) -> None:
        """Counts a step of the entries in the mask ``active``, of all for None."""
        increment = 1 if active is None else active.to(self.steps.dtype)
        self.steps += increment
        self._expected += increment


class DeviceCounts:
    """On the device, where the replays of a CUDA graph advance them unseen by Python.

    What the host does know is which entries have always been counted together. Those that have not are taken for
    different from then on, although their counts may happen to be equal.
    """

    def __init__(self, steps: Tensor, known: Tensor) -> None:
        self.steps = steps
        self._classes = known.unique(return_inverse=True)[1]
        self._version = steps._version

    def classes(self) -> Tensor:
        return self._classes

    def next(self, index: int) -> int | Tensor:
        return self.steps[index].double() + 1.0

    def were_set(self) -> bool:
        return self.steps._version != self._version

    def advance(self, active: Tensor | None) -> None:
        if active is None:
            self.steps += 1
        else:
            self.steps += upload(active.to(self.steps.dtype).numpy(), self.steps.device)
            self._classes = (2 * self._classes + active).unique(return_inverse=True)[1]
        self._version = self.steps._version


Counts = HostCounts | DeviceCounts


def make(entries: Sequence[Entry], device: torch.device, *, capturable: bool, keep: bool) -> Counts:
    """Counts that go on from the entries' states, whose "step" become views of one buffer.

    ``keep``: whoever holds the tensor of a state keeps the count, where that is possible.
    """
    dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
    known = torch.tensor(_values(entries), dtype=dtype, device="cpu")
    steps = upload(known.numpy(), device) if capturable else known
    for entry, step in zip(entries, steps.unbind(), strict=True):
        old = entry.state.get("step")
        if keep and isinstance(old, Tensor) and old.dtype == dtype and old.dim() == 0 and old.device == step.device:
            old.set_(step.untyped_storage(), step.storage_offset(), (), ())
        else:
            entry.state["step"] = step
    return DeviceCounts(steps, known) if capturable else HostCounts(steps)


def _values(entries: Sequence[Entry]) -> list[float]:
    values = [entry.state.get("step", 0.0) for entry in entries]
    elsewhere = [i for i, value in enumerate(values) if isinstance(value, Tensor) and not value.is_cpu]
    if elsewhere:  # all in one copy, which waits for the device
        found = torch.stack([values[i].detach().float().reshape(()) for i in elsewhere]).tolist()
        for i, value in zip(elsewhere, found, strict=True):
            values[i] = value
    return [float(value) for value in values]
