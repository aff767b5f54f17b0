"""Allocates memory on the CPU for what belongs to tensors on a device, and copies between the two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regkernels.memory import dense_strides, has_layout

CHUNK_BYTES = 1 << 28
"""torch rounds page-locked allocations up to a power of two: one buffer for all could take twice the memory."""

_ALIGNMENT = 64


def allocate(wanted: Sequence[Tensor], *, pinned: bool) -> list[Tensor]:
    """Returns tensors on the CPU of the same types, shapes and (where dense) strides, without values; page-locked if ``pinned``.

    No two of them are adjacent: the step would take them in one piece, and form its sums in another order than those of
    tensors that were allocated one by one.
    """
    sizes: list[int] = []
    places = []
    for tensor in wanted:
        size = (tensor.nbytes + 2 * _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT
        if not sizes or (sizes[-1] and sizes[-1] + size > CHUNK_BYTES):
            sizes.append(0)
        places.append((len(sizes) - 1, sizes[-1]))
        sizes[-1] += size
    buffers = [torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=pinned) for size in sizes]
    found = []
    for tensor, (number, begin) in zip(wanted, places, strict=True):
        flat = buffers[number][begin : begin + tensor.nbytes].view(tensor.dtype)
        found.append(flat.as_strided(tensor.shape, dense_strides(tensor), flat.storage_offset()))
    return found


class Lane:
    """Carries tensors between the CPU and a device.

    What is fetched travels on a stream of its own, beside what the device is computing. The CPU itself may stand in for a
    device; copies are over at once then.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._module: Any = None if device.type == "cpu" else torch.get_device_module(device)
        self._stream: Any = None if self._module is None else self._module.Stream(device=device)
        self._sent: Any = None

    @property
    def pins(self) -> bool:
        """Tells whether memory on the CPU is to be page-locked."""
        return self._module is not None

    def fetch(self, source: Tensor, target: Tensor) -> Any:
        """Starts to copy ``source``, as it is when the current stream has got here, to the CPU.

        Returns an event after which ``target`` may be read; None where it may be already. ``source`` may be freed at once.
        """
        if self._module is None:
            target.copy_(source)
            return None
        # Copies between other layouts go through memory on the CPU that nobody waits for.
        source = source.resolve_conj().resolve_neg()
        if not has_layout(source, target):
            source = torch.empty_strided(target.shape, target.stride(), dtype=target.dtype, device=source.device).copy_(
                source
            )
        self._stream.wait_stream(self._module.current_stream(self.device))
        with self._module.stream(self._stream):
            target.copy_(source, non_blocking=True)
            event = self._stream.record_event()
        source.record_stream(self._stream)
        return event

    def send(self, source: Tensor, target: Tensor) -> None:
        """Starts to copy ``source`` to the device, in the order of the current stream."""
        target.copy_(source, non_blocking=True)

    def sent(self) -> None:
        """Notes that the last of several `send` has been called."""
        if self._module is not None:
            self._sent = self._module.current_stream(self.device).record_event()

    def wait_for_sent(self) -> None:
        """Waits until what was sent may be overwritten."""
        if self._sent is not None:
            self._sent.synchronize()
            self._sent = None

    def wait_for_fetched(self) -> None:
        """Waits until all that was fetched has arrived."""
        if self._stream is not None:
            self._stream.synchronize()
