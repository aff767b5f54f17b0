"""Holds what a launch may touch of the process's memory, byte by byte, and checks each access to it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy
from numpy.typing import NDArray

from tests.triton.ptx.machine.faults import Fault
from tests.triton.ptx.machine.shadow import Shadow
from tests.triton.ptx.machine.types import i8

if TYPE_CHECKING:
    from tests.triton.ptx.machine.threads import Threads

Array = NDArray[Any]


class Region(NamedTuple):
    """A piece of memory, with exactly so many bytes, and what may be done to it."""

    name: str
    address: int
    size: int
    readable: bool = True
    writable: bool = False
    initialised: NDArray[numpy.bool_] | None = None  # byte by byte; None: all of it

    @property
    def end(self) -> int:
        return self.address + self.size

    @classmethod
    def of(cls, name: str, array: Array, **permissions: Any) -> Region:
        """Describes the memory of a contiguous array, which the caller keeps alive."""
        assert array.flags.c_contiguous
        return cls(name, array.ctypes.data, array.nbytes, **permissions)

    @property
    def bytes(self) -> Array:
        """Returns what lies there, to be read and written."""
        return _EVERYTHING[1][self.address - _Everything.FIRST : self.end - _Everything.FIRST]


class _Everything:
    """All of the process's memory as one array: after an access has been checked, it needs no second look-up."""

    FIRST = 64  # NumPy takes no array at address 0

    def __init__(self, size: int) -> None:
        self.__array_interface__ = {
            "data": (self.FIRST, False),
            "shape": (2**47 // size,),
            "typestr": f"<u{size}",
            "version": 3,
        }


_EVERYTHING = {size: numpy.asarray(_Everything(size)) for size in (1, 2, 4, 8)}


class GlobalMemory:
    """What all programs of a launch share. Nothing orders what two of them do, so what one writes no other may touch."""

    def __init__(self, regions: Sequence[Region], granule: int) -> None:
        """``granule``: bytes that are always touched together, a power of two."""
        filled = sorted((region for region in regions if region.size), key=lambda region: region.address)
        self._regions = [Region("nothing", 0, 0), *filled]
        for one, other in zip(self._regions, self._regions[1:], strict=False):
            if one.end > other.address:
                raise ValueError(f"{one.name} and {other.name} overlap")
        while any((region.address | region.size) % granule for region in self._regions):
            granule //= 2
        self._granule = granule
        self._starts = [region.address for region in self._regions]
        counts = [region.size // granule for region in self._regions]
        self._first = numpy.cumsum(counts, dtype=i8) - counts
        self._shadow = Shadow(sum(counts))
        for region, first, count in zip(self._regions, self._first, counts, strict=True):
            if region.initialised is not None:
                known = region.initialised.reshape(count, granule).all(1)
                self._shadow.initialised[first : first + count] = known
        self._columns = {
            "start": numpy.array(self._starts, i8),
            "end": numpy.array([region.end for region in self._regions], i8),
            "read": numpy.array([region.readable for region in self._regions], bool),
            "write": numpy.array([region.writable for region in self._regions], bool),
        }
        # Of what nobody writes and all of which is known, there is nothing to note.
        self._is_plain = [not region.writable and region.initialised is None for region in self._regions]

    def load(self, threads: Threads, site: int, address: Array, active: Any, bits: int, count: int) -> list[Array]:
        lanes, place = self._checked(threads, site, address, active, bits // 8 * count, "read")
        words, index = _EVERYTHING[bits // 8], (place - _Everything.FIRST) // (bits // 8)
        return [threads.spread(words[index + k], lanes, active) for k in range(count)]

    def store(self, threads: Threads, site: int, address: Array, active: Any, bits: int, values: list[Any]) -> None:
        lanes, place = self._checked(threads, site, address, active, bits // 8 * len(values), "write")
        words, index = _EVERYTHING[bits // 8], (place - _Everything.FIRST) // (bits // 8)
        for k, value in enumerate(values):
            words[index + k] = value[lanes] if numpy.ndim(value) else value

    def _checked(
        self, threads: Threads, site: int, address: Array, active: Any, size: int, what: str
    ) -> tuple[Any, Array]:
        """Returns the threads that take part, and their addresses."""
        lanes = threads.chosen(active)
        place = address[lanes].view(i8)
        if not len(place):
            return lanes, place

        def where(k: int) -> str:
            return self._described(threads.named(site, lanes, k), int(place[k]), size)

        region = self._found(place, size, what, where)
        if (place & (size - 1)).any():
            raise Fault(f"misaligned: {where(int((place & (size - 1) != 0).argmax()))}")
        allowed = self._columns[what][region]
        if not allowed.all():
            raise Fault(f"not to be {'read' if what == 'read' else 'written'}: {where(int(numpy.argmin(allowed)))}")
        if numpy.ndim(region) == 0 and self._is_plain[int(region)]:
            return lanes, place
        granules = self._first[region] + (place - self._columns["start"][region]) // self._granule
        touched = granules[:, None] + numpy.arange(size // self._granule)
        note = self._shadow.read if what == "read" else self._shadow.write
        note(touched, threads.who(lanes), where)
        return lanes, place

    def _found(self, place: Array, size: int, what: str, where: Any) -> Any:
        """Returns the number of the region in which each address is; a single one where that is the same for all."""
        least, most = int(place.min()), int(place.max())
        first = bisect_right(self._starts, least) - 1
        if first >= 0 and most + size <= self._regions[first].end:
            return numpy.intp(first)
        region = numpy.searchsorted(self._columns["start"], place, "right") - 1
        outside = (region < 0) | (place + size > self._columns["end"][region])
        if outside.any():
            raise Fault(f"{what} out of bounds: {where(int(outside.argmax()))}")
        return region

    def _described(self, who: str, place: int, size: int) -> str:
        near = min(self._regions, key=lambda region: max(region.address - place, place - region.end))
        return f"{who}, {size} bytes at {place:#x}, at byte {place - near.address} of the {near.size} of {near.name}"
