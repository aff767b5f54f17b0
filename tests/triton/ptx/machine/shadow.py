"""Remembers of each piece of memory whether it has been written, and who touched it last; so it sees races.

Two accesses of different threads, at least one of which writes, race unless a barrier of their program lies between them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy
from numpy.typing import NDArray

from tests.triton.ptx.machine.faults import Fault
from tests.triton.ptx.machine.types import i4

Array = NDArray[Any]


class Who(NamedTuple):
    """Who makes an access, one row for each thread: its number in the launch, from 1 on, its program, and how many barriers it has
    passed."""

    thread: Array
    program: Array
    epoch: Array
    threads: int  # of a program

    def owner(self, thread: Array) -> Array:
        """Returns the program of a thread, or of what stands for several of one."""
        return numpy.where(thread > 0, (thread - 1) // self.threads, -thread - 2)


_NOBODY, _PROGRAMS = 0, -1
"""In the place of a thread: none; those of several programs. -2 - p stands for several threads of program p."""


class Shadow:
    def __init__(self, granules: int, initialised: bool = True, same_values_may_meet: bool = False) -> None:
        """``same_values_may_meet``: several threads may write into one place at once, what the caller sees to be the same."""
        self.initialised = numpy.full(granules, initialised)
        self._same_values_may_meet = same_values_may_meet
        self._writer, self._written = numpy.zeros(granules, i4), numpy.zeros(granules, i4)
        self._reader, self._read = numpy.zeros(granules, i4), numpy.zeros(granules, i4)

    def read(self, places: Array, who: Who, where: Callable[[int], str]) -> None:
        """Notes that each thread reads its row of ``places``; ``where`` describes the access of one."""
        self._refuse(~self.initialised[places], "reads what was never written", where)
        self._refuse(self._written_by_others(places, who), "race with a write", where)
        self._note_readers(places, who)

    def write(self, places: Array, who: Who, where: Callable[[int], str]) -> None:
        self._refuse(self._written_by_others(places, who), "race with a write", where)
        reader = self._reader[places]
        others = (reader != _NOBODY) & (reader != who.thread)
        if others.any():
            unordered = (who.owner(reader) != who.program) | (self._read[places] == who.epoch)
            self._refuse(others & unordered, "race with a read", where)
        self._writer[places] = who.thread
        if not self._same_values_may_meet:
            self._refuse(self._writer[places] != who.thread, "two threads write at once", where)
        self._written[places] = who.epoch
        self.initialised[places] = True

    def _written_by_others(self, places: Array, who: Who) -> Array:
        writer = self._writer[places]
        others = (writer != _NOBODY) & (writer != who.thread)
        if others.any():
            others &= (who.owner(writer) != who.program) | (self._written[places] == who.epoch)
        return others

    def _note_readers(self, places: Array, who: Who) -> None:
        before = self._reader[places]
        thread = numpy.broadcast_to(who.thread, places.shape)
        program = numpy.broadcast_to(who.program, places.shape)
        now = thread
        others = (before != _NOBODY) & (before != thread)
        if others.any():
            same_program = who.owner(before) == program
            unordered = self._read[places] == who.epoch
            several = numpy.where(same_program, numpy.where(unordered, -2 - program, thread), _PROGRAMS)
            now = numpy.where(others, several, thread)
        self._reader[places] = now
        self._read[places] = numpy.broadcast_to(who.epoch, places.shape)
        # Of several threads that read one place in this access, one was noted.
        for _ in range(2):
            noted = self._reader[places]
            met = noted != now
            if not met.any():
                return
            same_program = who.owner(noted[met]) == program[met]
            now = now.copy()
            now[met] = numpy.where(same_program, -2 - program[met], _PROGRAMS)
            self._reader[places[met]] = now[met]

    @staticmethod
    def _refuse(wrong: Array, what: str, where: Callable[[int], str]) -> None:
        if wrong.any():
            raise Fault(f"{what}: {where(int(wrong.any(1).argmax()))}")
