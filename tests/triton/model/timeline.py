"""Follows one warp through a path, from the waits that are written in its machine code.

The compiler says after how many cycles the next instruction may follow and on which results it waits. Of results that take a time
of their own (loads, conversions, special functions, shared memory) that time is assumed.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from tests.triton.model.chips import CACHE_NS, MEMORY_NS, Chip
from tests.triton.model.sass import Instruction

LATENCIES = {"MUFU": 24, "CVT": 28, "SMEM": 30, "FP64": 16}
"""Cycles until the result of a unit is there; of others that are waited for `OTHER_LATENCY`."""

OTHER_LATENCY, OPERANDS_READ = 20, 12

EXTRA = {"BRA": 4, "BAR": 30}
"""Cycles that a branch takes, and a meeting of all warps of a program."""


class Timeline(NamedTuple):
    """Says how long a warp takes alone, and how many bytes one of its threads has asked for at most at one time."""

    cycles: float
    in_flight: int


def follow(path: list[Instruction], chip: Chip, rounds: int = 1) -> Timeline:
    """Follows a warp through a path ``rounds`` times in succession; the cycles are those of the last time."""
    now = began = 0.0
    barriers = [0.0] * 6
    asked: list[tuple[float, int]] = []
    copies: deque[float] = deque()  # into shared memory, which are waited for by how many may be missing
    copied_until, most = 0.0, 0
    for _ in range(rounds):
        began = now
        for instruction in path:
            now = max([now, *(barriers[barrier] for barrier in instruction.waits)])
            done = now + _latency(instruction, chip)
            if instruction.unit == "LOAD":
                asked = [(until, size) for until, size in asked if until > now] + [(done, instruction.bytes)]
                most = max(most, sum(size for _, size in asked))
            if instruction.name == "LDGSTS":
                copied_until = done
            elif instruction.name == "LDGDEPBAR":
                copies.append(copied_until)
            elif instruction.name == "DEPBAR":
                missing = int(instruction.operands.rpartition("0x")[2].rstrip(", {}") or "0", 16)
                while len(copies) > missing:
                    now = max(now, copies.popleft())
            if instruction.sets is not None:
                barriers[instruction.sets] = max(barriers[instruction.sets], done)
            if instruction.frees is not None:
                barriers[instruction.frees] = max(barriers[instruction.frees], now + OPERANDS_READ)
            now += max(1, instruction.stall) + EXTRA.get(instruction.name, 0)
    return Timeline(now - began, most)


def _latency(instruction: Instruction, chip: Chip) -> float:
    """Returns after how many cycles a result is there. Loads of few bytes without a mask are from the tables."""
    if instruction.unit == "LOAD":
        return chip.cycles(MEMORY_NS if instruction.is_wide or instruction.predicate else CACHE_NS)
    return LATENCIES.get(instruction.unit, OTHER_LATENCY)
