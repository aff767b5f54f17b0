"""Holds the threads of some programs of a launch, side by side: who they are, and what they see besides registers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy
from numpy.typing import NDArray

from tests.triton.ptx.machine.copies import Copies
from tests.triton.ptx.machine.regions import GlobalMemory
from tests.triton.ptx.machine.shadow import Who
from tests.triton.ptx.machine.shared import SharedMemory
from tests.triton.ptx.machine.translation import Code
from tests.triton.ptx.machine.types import i4, u4

WARP = 32

Array = NDArray[Any]


class Threads:
    """Generated code calls it T, and reads special registers in it."""

    def __init__(
        self,
        code: Code,
        programs: range,
        grid: tuple[int, int, int],
        count: int,
        arguments: Mapping[str, numpy.generic],
        memory: GlobalMemory,
        shared: int,
    ) -> None:
        """``count``: threads of a program; ``shared``: bytes that it has for itself."""
        self.code, self.memory, self.count = code, memory, count
        self.first, self.programs = programs.start, len(programs)
        self.lanes = self.programs * count
        self.shared = SharedMemory(self.programs, count, shared, code.granules["shared"])
        self.copies = Copies(self.lanes)
        self._arguments = arguments
        self._every = numpy.arange(self.lanes)
        self.tid = numpy.tile(numpy.arange(count, dtype=u4), self.programs)
        self.ntid = self.full(u4(count))
        self.lane = self.tid % u4(WARP)
        program = numpy.repeat(numpy.arange(programs.start, programs.stop, dtype=i4), count)
        x, y, _ = grid
        self.ctaid = [place.astype(u4) for place in (program % x, program // x % y, program // (x * y))]
        self.nctaid = [self.full(u4(size)) for size in grid]
        self._program = program[:, None]
        self._thread = self._program * count + self.tid.astype(i4)[:, None] + 1
        self.epochs = numpy.zeros((self.programs, 1), i4)
        self.guards_seen = numpy.zeros((len(code.sites), 2), bool)

    def full(self, value: Any) -> Any:
        return value if numpy.ndim(value) else numpy.full(self.lanes, value)

    def parameter(self, name: str, bits: int) -> Array:
        value = self._arguments[name]
        return numpy.full(self.lanes, value.view(f"u{value.itemsize}").astype(f"u{bits // 8}"))

    # --- who takes part ---

    def guarded(self, site: int, predicate: Array, mask: Array | None) -> Array | None:
        """Returns who is here and has the predicate; None for all. Notes what predicates were seen to be."""
        active = predicate if mask is None else predicate & mask
        count = numpy.count_nonzero(active)
        here = self.lanes if mask is None else numpy.count_nonzero(mask)
        self.guards_seen[site] |= (count < here, count > 0)
        return None if count == self.lanes else active

    def chosen(self, active: Array | None) -> Any:
        return self._every if active is None else numpy.flatnonzero(active)

    def spread(self, values: Array, lanes: Array, active: Array | None) -> Array:
        """Returns an element for each thread; 0 for those that took no part."""
        if active is None:
            return values
        result = numpy.zeros(self.lanes, values.dtype)
        result[lanes] = values
        return result

    def who(self, lanes: Array) -> Who:
        return Who(self._thread[lanes], self._program[lanes], self.epochs[lanes // self.count], self.count)

    def named(self, site: int, lanes: Array, k: int) -> str:
        program, thread = divmod(int(lanes[k]), self.count)
        return f"`{self.code.sites[site].text}`, thread {thread} of program {self.first + program}"
