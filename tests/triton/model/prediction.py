"""Predicts which part of a chip's bandwidth a kernel reaches, and what it is that keeps it from more."""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

from tests.triton.model.chips import Chip
from tests.triton.model.paths import Path, split
from tests.triton.model.sass import parse
from tests.triton.model.timeline import follow

COLUMNS = ("FP32", "INT", "FP64", "MUFU", "CVT", "SMEM", "CTRL")
"""Classes of instructions that are listed; the others load and store."""

RESERVED_SHARED = 1024  # bytes of shared memory that each program takes beside its own
ROUNDS = 3  # after which each round of a loop takes as long as the one before


class Work(NamedTuple):
    """Says what a program does: how many elements it has, of how many bytes each, and how often it goes through its loops, if they are not unrolled."""

    elements: int
    read: float  # bytes per element, each counted once
    written: float
    rounds: int
    warps: int
    registers: int
    shared: int  # bytes


class Prediction(NamedTuple):
    """Holds what is predicted. Instructions are those of a thread, per element; shares are of a copy's bandwidth."""

    instructions: dict[str, float]
    total: float
    warps: int  # of a multiprocessor at a time
    in_flight: int  # bytes that they have asked for at most
    bound: str
    percent: float


def predict(machine_code: str, work: Work, chip: Chip) -> Prediction:
    """Predicts the speed of a kernel over tensors that fill the device.

    Memory, issue slots or the busiest unit, and the waits of the warps that are there at a time would each allow a speed. Where two are
    near each other, neither is reached: the time is taken for the root of the sum of their squares.
    """
    once, loops = split(parse(machine_code))
    threads = 32 * work.warps / work.elements
    rounds = _rounds(loops, work, threads)
    paths = [(once, 1), *((loop, rounds) for loop in loops)]
    counts: Counter[str] = Counter()
    for path, times in paths:
        for instruction in path:
            counts[instruction.unit] += times * threads
    units = _cycles_of_units(paths, counts, threads, chip)
    busiest = max(units, key=units.__getitem__)
    alone = follow(once, chip).cycles + sum(rounds * follow(loop, chip, ROUNDS).cycles for loop in loops)
    programs = resident(work, chip)
    bounds = {
        "memory": (work.read + work.written) / chip.copied_bytes_per_cycle,
        "latency": alone / (programs * work.elements),
        busiest: units[busiest],
    }
    in_flight = max(follow(path, chip, ROUNDS if times > 1 else 1).in_flight for path, times in paths)
    return Prediction(
        {name: counts[name] for name in COLUMNS},
        sum(counts.values()),
        programs * work.warps,
        programs * work.warps * 32 * in_flight,
        max(bounds, key=bounds.__getitem__),
        100 * bounds["memory"] / math.hypot(*bounds.values()),
    )


def _rounds(loops: list[Path], work: Work, threads: float) -> float:
    """Returns how often a program goes through its loops: one that goes through a single one as often as it takes to move everything, as
    the compiler may have unrolled it."""
    if len(loops) != 1:
        return work.rounds
    moved = sum(instruction.bytes for instruction in loops[0]) * threads
    return (work.read + work.written) / moved if moved else work.rounds


def resident(work: Work, chip: Chip) -> int:
    """Returns how many programs a multiprocessor has room for at a time."""
    registers = -(-work.registers // 8) * 8 * 32 * work.warps
    shared = chip.shared_kilobytes * 1024 // (work.shared + RESERVED_SHARED)
    return max(1, min(chip.registers // registers, shared, chip.programs, chip.warps // work.warps))


def _cycles_of_units(
    paths: list[tuple[Path, float]], counts: Counter[str], threads: float, chip: Chip
) -> dict[str, float]:
    """Returns the cycles that each unit of a multiprocessor takes for an element."""
    wide = threads * sum(times * sum(each.is_of_64_bits for each in path) for path, times in paths)
    of_64_bits = wide / chip.conversions
    others = (counts["CVT"] - wide + counts["MUFU"]) / chip.special
    fp64 = counts["FP64"] / chip.fp64
    return {
        "issue": sum(counts.values()) / chip.issue,
        "float32 unit": counts["FP32"] / chip.fp32,
        "integer unit": counts["INT"] / chip.integer,
        "float64 unit": fp64 + of_64_bits * chip.has_slow_float64,
        "conversion unit": others + of_64_bits * (not chip.has_slow_float64),
        "shared memory": counts["SMEM"] / chip.shared_memory,
    }
