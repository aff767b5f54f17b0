"""Runs the programs of a launch, some of them side by side: who is furthest behind goes first, and barriers wait for all."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy
from numpy.typing import NDArray

from tests.triton.ptx.machine.faults import Fault
from tests.triton.ptx.machine.regions import GlobalMemory, Region
from tests.triton.ptx.machine.threads import Threads
from tests.triton.ptx.machine.translation import Code
from tests.triton.ptx.machine.types import POISON, i4

AT_ONCE = 32
"""Programs side by side: enough for NumPy to do more than start."""

ENOUGH = 1_000_000
"""Blocks that programs may run before they are said not to end."""


class Tally(NamedTuple):
    """Counts what was seen in a launch."""

    blocks: NDArray[numpy.int64]  # how often each was run, by however many threads
    guards: NDArray[numpy.bool_]  # for each instruction, whether the predicate before it was seen false, and true


def run(
    code: Code,
    grid: Sequence[int],
    arguments: Sequence[numpy.generic],
    regions: Sequence[Region],
    *,
    threads: int | None = None,
    shared: int = 0,
    limit: int = ENOUGH,
) -> Tally:
    """Runs the entry function of a text and returns what was seen.

    ``arguments``: NumPy numbers, in the order of the text; pointers are uint64. ``regions``: what memory may be touched.
    ``threads``: of each program, where the text does not say it; ``shared``: bytes of shared memory of each.
    """
    count = threads or code.program.threads
    if count is None or count != (code.program.threads or count):
        raise Fault(f"launched with {threads} threads, made for {code.program.threads}")
    given = dict(zip(code.program.parameters, arguments, strict=True))
    for name, size in code.program.parameters.items():
        if given[name].itemsize != size:
            raise Fault(f"{name} has {size} bytes, and is given {given[name].itemsize}")
    x, y, z = (*grid, 1, 1)[:3]
    memory = GlobalMemory(regions, code.granules["global"])
    tally = Tally(numpy.zeros(len(code.ends), int), numpy.zeros((len(code.sites), 2), bool))
    with numpy.errstate(all="ignore"):
        for first in range(0, prod((x, y, z)), AT_ONCE):
            programs = range(first, min(first + AT_ONCE, prod((x, y, z))))
            _Run(Threads(code, programs, (x, y, z), count, given, memory, shared), tally).to_the_end(limit)
    return tally


class _Run:
    """Where each thread is. While all are at one place, no masks are needed."""

    def __init__(self, threads: Threads, tally: Tally) -> None:
        self._threads, self._code, self._tally = threads, threads.code, tally
        self._at = numpy.zeros(threads.lanes, i4)
        self._waits = numpy.zeros(threads.lanes, bool)
        self._done = numpy.zeros(threads.lanes, bool)

    def to_the_end(self, limit: int) -> None:
        registers = _poisoned(self._code, self._threads.lanes)
        block: int | None = 0
        mask: Any = None
        for _ in range(limit):
            if block is None:
                block, mask = self._next()
            if block is None:
                self._tally.guards[:] |= self._threads.guards_seen
                return
            self._code.block(block, mask is not None)(registers, self._threads, mask)
            self._tally.blocks[block] += 1
            block = self._left(block, mask, registers)
        raise Fault(f"{self._code.program.name} does not end")

    def _next(self) -> tuple[int | None, Any]:
        """Returns the first block in which threads can go on, and who they are; None for all threads, or where all are done."""
        able = ~(self._waits | self._done)
        if not able.any():
            if self._done.all():
                return None, None
            raise Fault(
                f"{self._code.program.name}: threads wait at a barrier for others that have ended or wait elsewhere"
            )
        block = int(self._at[able].min())
        mask = able & (self._at == block)
        return block, None if mask.all() else mask

    def _left(self, block: int, mask: Any, registers: list[Any]) -> int | None:
        """Sends on who has run a block. Returns where all threads are now; None where they are at several places."""
        end = self._code.ends[block]
        here = slice(None) if mask is None else mask
        match end.kind:
            case "bra" if end.guard is not None:
                return self._branched(block, mask, registers[end.guard] ^ end.negated, end.target)
            case "ret":
                self._done[here] = True
                self._release()
                return None
            case "bar" if mask is None:
                self._threads.epochs += 1
                return block + 1
            case "bar":
                self._at[here], self._waits[here] = block + 1, True
                self._release()
                return None
        target = end.target if end.kind == "bra" else block + 1
        if mask is None:
            return target
        self._at[here] = target
        return None

    def _branched(self, block: int, mask: Any, taken: NDArray[numpy.bool_], target: int) -> int | None:
        if mask is None:
            count = numpy.count_nonzero(taken)
            self._note(block, count > 0, count < len(taken))
            if count in (0, len(taken)):
                return target if count else block + 1
            self._at[:] = numpy.where(taken, i4(target), i4(block + 1))
            return None
        self._note(block, (taken & mask).any(), (~taken & mask).any())
        self._at[mask] = numpy.where(taken[mask], i4(target), i4(block + 1))
        return None

    def _note(self, block: int, taken: Any, not_taken: Any) -> None:
        """Notes which ways a branch was gone."""
        self._tally.guards[self._code.last_sites[block]] |= (not_taken, taken)

    def _release(self) -> None:
        """Lets go on those programs of which all threads wait."""
        shape = (self._threads.programs, self._threads.count)
        waits, done, at = (each.reshape(shape) for each in (self._waits, self._done, self._at))
        for program in numpy.flatnonzero((waits | done).all(1) & waits.any(1)):
            if done[program].any() or (at[program] != at[program, 0]).any():
                raise Fault(
                    f"{self._code.program.name}: threads of program {self._threads.first + program} wait at different barriers, "
                    "or for some that have ended"
                )
            waits[program] = False
            self._threads.epochs[program] += 1


def _poisoned(code: Code, lanes: int) -> list[Any]:
    """Returns what registers hold at first: True, or bits that are no address, no small number and no usual float."""
    kinds: dict[str, Any] = {"bool_": numpy.full(lanes, True)}
    for kept in set(code.kept) - {"bool_"}:
        size = int(kept[1])
        kinds[kept] = numpy.full(lanes, POISON % (1 << 8 * size), f"u{size}").view(kept)
    return [kinds[kept] for kept in code.kept]
