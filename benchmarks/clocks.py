"""Measures time, and with it the streams that a machine can do at most."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable

import torch

from benchmarks.case import Contender

A_WHILE = 20_000_000
"""Clock cycles, about 10 ms: how long a GPU is kept busy while the host queues what is to be timed."""

Clock = Callable[[Contender], float]


def wall_time(contender: Contender) -> float:
    """Measures seconds from the call until the device is done with it, both idle before."""
    _prepare(contender)
    start = time.perf_counter()
    contender.run()
    _wait()
    return time.perf_counter() - start


def host_time(contender: Contender) -> float:
    """Measures seconds until the call returns. The queue is empty before, so the host never waits for a place in it."""
    _prepare(contender)
    start = time.perf_counter()
    contender.run()
    taken = time.perf_counter() - start
    _wait()
    return taken


def event_time(contender: Contender) -> float:
    """Measures seconds between two events on a GPU. The host has a head start, as in training after a backward pass."""
    _prepare(contender)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(A_WHILE)
    start.record()
    contender.run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def clock(name: str, device: str) -> Clock:
    """Returns the clock that a case asks for: "device", "wall" or "host"."""
    if name == "host":
        return host_time
    return event_time if name == "device" and device == "cuda" else wall_time


STREAMS = ("copy", "update", "read")


def rates(device: str, elements: int, streams: Iterable[str] = STREAMS) -> dict[str, float]:
    """Measures GB/s of plain streams over float32 arrays, by torch's own kernels and with torch's threads: the median of
    several runs, as of everything that is compared with it."""
    x = torch.ones(elements, device=device)
    y = torch.ones(elements if "copy" in streams else 1, device=device)
    runs = {
        "copy": (lambda: y.copy_(x), 8 * elements),
        "update": (lambda: x.add_(1.0), 8 * elements),
        "read": (lambda: x.sum(), 4 * elements),
    }
    time_of = clock("device", device)
    return {
        name: round(size / statistics.median(time_of(Contender(run)) for _ in range(7)) / 1e9, 1)
        for name, (run, size) in runs.items()
        if name in streams
    }


def _prepare(contender: Contender) -> None:
    if contender.prepare is not None:
        contender.prepare()
    _wait()


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
