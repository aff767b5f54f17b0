"""Timing side by side: contenders take turns in one process, so that a machine's drift hits all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.record import Row


@dataclass
class Contender:
    """``run`` is timed; ``prepare`` is called before each run, outside of the clock.

    ``bytes_moved``: where it has to move another number of bytes than the others, for the same question.
    """

    name: str
    run: Callable[[], object]
    prepare: Callable[[], object] | None = None
    bytes_moved: int | None = None


def wall_time(contender: Contender) -> float:
    """Seconds of a run on the CPU."""
    if contender.prepare is not None:
        contender.prepare()
    start = time.perf_counter()
    contender.run()
    return time.perf_counter() - start


@dataclass
class Case:
    """Contenders for one question. The first one is the baseline. ``bytes_moved`` 0: it is not about memory."""

    question: str
    name: str
    contenders: list[Contender]
    bytes_moved: int
    limit: str = "update"  # which of the machine's limits bounds it
    clock: Callable[[Contender], float] = wall_time


def measure(case: Case, limits: dict[str, float], *, rounds: int, burst: int, tick: Callable[[], object]) -> list[Row]:
    """Each round gives every contender a burst of runs in turn: the first is the cold one, the others are warm."""
    warm: dict[str, list[float]] = {contender.name: [] for contender in case.contenders}
    cold: dict[str, list[float]] = {contender.name: [] for contender in case.contenders}
    for contender in case.contenders:
        case.clock(contender)
    for _ in range(rounds):
        for contender in case.contenders:
            times = [case.clock(contender) for _ in range(burst)]
            cold[contender.name].append(times[0])
            warm[contender.name].append(statistics.median(times[1:]))
        tick()
    baseline = case.contenders[0].name
    rows = []
    for contender in case.contenders:
        times = warm[contender.name]
        low, high = quantiles(times)
        bytes_moved = case.bytes_moved if contender.bytes_moved is None else contender.bytes_moved
        rate = bytes_moved / statistics.median(times) / 1e9
        rows.append(
            Row(
                question=case.question,
                case=case.name,
                contender=contender.name,
                baseline=baseline,
                warm_ms=_ms(statistics.median(times)),
                low_ms=_ms(low),
                high_ms=_ms(high),
                cold_ms=_ms(statistics.median(cold[contender.name])),
                speedup=_ratio(warm[baseline], times),
                speedup_cold=_ratio(cold[baseline], cold[contender.name]),
                bytes_moved=bytes_moved,
                gigabytes_per_second=round(rate, 2),
                percent_of_limit=round(100 * rate / limits[case.limit], 1),
            )
        )
    return rows


def machine_limits(elements: int = 1 << 27) -> dict[str, float]:
    """GB/s of plain streams over arrays far larger than the caches, with torch's threads: the best of several runs."""
    x = torch.ones(elements)
    runs = {"update": (lambda: x.add_(1.0), 8 * elements), "read": (lambda: x.sum(), 4 * elements)}
    limits = {}
    for name, (run, size) in runs.items():
        best = min(wall_time(Contender(name, run)) for _ in range(7))
        limits[name] = round(size / best / 1e9, 1)
    return limits


def quantiles(times: list[float]) -> tuple[float, float]:
    """20th and 80th percentile."""
    if len(times) < 2:
        return times[0], times[0]
    fifths = statistics.quantiles(times, n=5, method="inclusive")
    return fifths[0], fifths[-1]


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 4)


def _ratio(baseline: list[float], times: list[float]) -> float:
    return round(statistics.median(b / t for b, t in zip(baseline, times, strict=True)), 2)
