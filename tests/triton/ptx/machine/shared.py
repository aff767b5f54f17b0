"""Holds the memory that each program has for itself, and checks each access to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy
from numpy.typing import NDArray

from tests.triton.ptx.machine.faults import Fault
from tests.triton.ptx.machine.shadow import Shadow
from tests.triton.ptx.machine.types import i8

if TYPE_CHECKING:
    from tests.triton.ptx.machine.threads import Threads

Array = NDArray[Any]


class SharedMemory:
    """Where a layout has a value in several threads, all of them store it: into one place, at once, the same value."""

    def __init__(self, programs: int, threads: int, size: int, granule: int) -> None:
        self._threads, self._size, self._granule = threads, size, granule
        self._stride = -(-size // 16) * 16
        self._bytes = numpy.zeros(programs * self._stride, numpy.uint8)
        self._shadow = Shadow(len(self._bytes) // granule, initialised=False, same_values_may_meet=True)

    def load(self, threads: Threads, site: int, address: Array, active: Any, bits: int, count: int) -> list[Array]:
        lanes, place = self._checked(threads, site, address, active, bits // 8 * count, writes=False)
        words, index = self._bytes.view(f"u{bits // 8}"), place // (bits // 8)
        return [threads.spread(words[index + k], lanes, active) for k in range(count)]

    def store(self, threads: Threads, site: int, address: Array, active: Any, bits: int, values: list[Any]) -> None:
        lanes, place = self._checked(threads, site, address, active, bits // 8 * len(values), writes=True)
        words, index = self._bytes.view(f"u{bits // 8}"), place // (bits // 8)
        for k, value in enumerate(values):
            given = value[lanes] if numpy.ndim(value) else value
            words[index + k] = given
            differ = words[index + k] != given
            if differ.any():
                which = threads.named(site, lanes, int(differ.argmax()))
                raise Fault(f"several threads write different values into one place of shared memory: {which}")

    def reserve(self, threads: Threads, site: int, address: Array, active: Any, size: int) -> None:
        """Notes that something is on its way there: nobody else may touch it, and nobody may read it."""
        self._checked(threads, site, address, active, size, writes=True, arrives=False)

    def _checked(
        self, threads: Threads, site: int, address: Array, active: Any, size: int, writes: bool, arrives: bool = True
    ) -> tuple[Any, Array]:
        lanes = threads.chosen(active)
        place = address[lanes].astype(i8)

        def where(k: int) -> str:
            return f"{threads.named(site, lanes, k)}, {size} bytes at {place[k]} of {self._size} that are shared"

        for wrong, what in ((place + size > self._size, "out of bounds"), (place % size != 0, "misaligned")):
            if wrong.any():
                raise Fault(f"{what}: {where(int(wrong.argmax()))}")
        place += lanes // self._threads * self._stride
        touched = (place // self._granule)[:, None] + numpy.arange(size // self._granule)
        (self._shadow.write if writes else self._shadow.read)(touched, threads.who(lanes), where)
        if not arrives:
            self._shadow.initialised[touched] = False
        return lanes, place
