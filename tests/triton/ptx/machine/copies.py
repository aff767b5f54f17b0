"""Copies from global to shared memory that go on while threads do something else, until these wait for them.

The hardware may read and write at any time in between. Here what is read is read at once, and what is written arrives when its
thread has waited; until then there is nothing that anybody may read in its place, and nothing that another may write there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy
from numpy.typing import NDArray

from tests.triton.ptx.machine.faults import Fault
from tests.triton.ptx.machine.types import i8

if TYPE_CHECKING:
    from tests.triton.ptx.machine.threads import Threads

Array = NDArray[Any]


class _Copy(NamedTuple):
    site: int
    lanes: Array
    group: Array  # of each of them: how many it had committed before
    address: Array  # of all threads, in shared memory
    words: list[Array]  # of all threads, 4 bytes each


class Copies:
    def __init__(self, lanes: int) -> None:
        self._committed = numpy.zeros(lanes, i8)
        self._pending: list[_Copy] = []

    def start(
        self, threads: Threads, site: int, target: Array, source: Array, active: Any, size: int, filled: Any
    ) -> None:
        """``filled``: the bytes that are read; the others of ``size`` become 0."""
        filled = numpy.broadcast_to(filled, threads.lanes)
        lanes = threads.chosen(active)
        if not numpy.isin(filled[lanes], (0, size)).all():
            raise Fault(f"part of a copy is filled up: {threads.named(site, lanes, 0)}")
        reads = filled == size if active is None else (filled == size) & active
        words = threads.memory.load(threads, site, source, None if reads.all() else reads, 32, size // 4)
        threads.shared.reserve(threads, site, target, active, size)
        self._pending.append(_Copy(site, lanes, self._committed[lanes], target, words))

    def commit(self, active: Any) -> None:
        """Makes one group of what each thread has started since the last."""
        self._committed[slice(None) if active is None else active] += 1

    def wait(self, threads: Threads, active: Any, but: int) -> None:
        """Lets arrive all groups of the threads but their latest so many."""
        here = numpy.ones(threads.lanes, bool) if active is None else active
        pending = []
        for copy in self._pending:
            arrives = here[copy.lanes] & (copy.group < self._committed[copy.lanes] - but)
            mask = numpy.zeros(threads.lanes, bool)
            mask[copy.lanes[arrives]] = True
            if arrives.any():
                threads.shared.store(threads, copy.site, copy.address, mask, 32, copy.words)
            if not arrives.all():
                left = ~arrives
                pending.append(copy._replace(lanes=copy.lanes[left], group=copy.group[left]))
        self._pending = pending
