"""Times side by side: contenders take turns in one process, so that a machine's drift hits all of them."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch

from benchmarks import clocks
from benchmarks.case import Case, Contender, is_wrong
from benchmarks.record import Row


class Plan:
    """Says how often: as long as ``seconds`` last, and at least ``least`` rounds of ``burst`` runs of each contender."""

    def __init__(self, seconds: float, least: int = 3, most: int = 60, burst: int = 4) -> None:
        self.seconds, self.least, self.most, self.burst = seconds, least, most, burst


def measure(
    case: Case,
    contenders: dict[str, Contender],
    rates: dict[str, float],
    plan: Plan,
    device: str = "cpu",
    tick: Callable[[float], object] = lambda part: None,
) -> list[Row]:
    """Times in rounds. Each gives every contender a burst of runs in turn: the first is the cold one, the others are warm.

    ``tick`` is told what part of the work is done.
    """
    clock = clocks.clock(case.clock, device)
    warm: dict[str, list[float]] = {name: [] for name in contenders}
    cold: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        clock(contender)
    for part in _rounds(plan):
        for name, contender in contenders.items():
            times = [clock(contender) for _ in range(plan.burst)]
            cold[name].append(times[0])
            warm[name].append(statistics.median(times[1:]))
        tick(part)
    right = [name for name in contenders if not is_wrong(case.notes.get(name, ""))]
    baseline = next(iter(right or contenders))
    rows = []
    for name, contender in contenders.items():
        bytes_moved = case.bytes_moved if contender.bytes_moved is None else contender.bytes_moved
        rows.append(_row(case, name, baseline, bytes_moved, warm, cold, rates))
    return rows


def _rounds(plan: Plan) -> Iterator[float]:
    start, done = time.perf_counter(), 0
    while done < plan.least or (done < plan.most and time.perf_counter() - start < plan.seconds):
        done += 1
        yield min(1.0, max(done / plan.most, (time.perf_counter() - start) / plan.seconds))


def _row(
    case: Case,
    name: str,
    baseline: str,
    bytes_moved: int,
    warm: dict[str, list[float]],
    cold: dict[str, list[float]],
    rates: dict[str, float],
) -> Row:
    times = warm[name]
    low, high = quantiles(times)
    ratios = [base / own for base, own in zip(warm[baseline], times, strict=True)]
    slow, fast = quantiles(ratios)
    rate = bytes_moved / statistics.median(times) / 1e9
    return Row(
        suite=case.suite,
        case=case.name,
        peer=name,
        baseline=baseline,
        shapes=case.shapes,
        x=case.x,
        ms=_ms(statistics.median(times)),
        low_ms=_ms(low),
        high_ms=_ms(high),
        cold_ms=_ms(statistics.median(cold[name])),
        ratio=round(statistics.median(ratios), 3),
        ratio_low=round(slow, 3),
        ratio_high=round(fast, 3),
        ratio_cold=round(statistics.median(b / t for b, t in zip(cold[baseline], cold[name], strict=True)), 3),
        rounds=len(times),
        bytes_moved=bytes_moved,
        gigabytes_per_second=round(rate, 2),
        percent_of_stream=round(100 * rate / rates[case.stream], 1),
        stream=case.stream,
        stream_gb_per_s=rates[case.stream],
        note=case.notes.get(name, ""),
        peak_bytes=case.peaks.get(name),
    )


def quantiles(values: list[float]) -> tuple[float, float]:
    """Returns the 20th and 80th percentile."""
    if len(values) < 2:
        return values[0], values[0]
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return fifths[0], fifths[-1]


def forget() -> None:
    """Gives memory back, and what torch.compile keeps, before the next case is built."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if sys.platform == "linux":  # glibc keeps what was freed in pieces of a few MB, gigabytes of it
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 5)
