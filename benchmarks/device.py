"""Clocks for work on a GPU, which goes on after the call that asked for it has returned; and the GPU's own limits."""

from __future__ import annotations

import time

import torch

from benchmarks.timing import Contender

A_WHILE = 20_000_000
"""Clock cycles, about 10 ms: how long the device is kept busy while the host queues what is to be timed."""


def device_time(contender: Contender) -> float:
    """Seconds between two events on the device. The host has a head start, as in training after a backward pass."""
    _prepare(contender)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(A_WHILE)
    start.record()
    contender.run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def wall_time(contender: Contender) -> float:
    """Seconds from the call until the device is done with it, both idle before."""
    _prepare(contender)
    start = time.perf_counter()
    contender.run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def host_time(contender: Contender) -> float:
    """Seconds until the call returns. The queue is empty before, so the host never waits for a place in it."""
    _prepare(contender)
    start = time.perf_counter()
    contender.run()
    taken = time.perf_counter() - start
    torch.cuda.synchronize()
    return taken


def _prepare(contender: Contender) -> None:
    if contender.prepare is not None:
        contender.prepare()
    torch.cuda.synchronize()


def limits(device: str, elements: int) -> dict[str, float]:
    """GB/s of plain streams over float32 arrays, by torch's own kernels: the best of several runs."""
    x, y = torch.ones(elements, device=device), torch.empty(elements, device=device)
    runs = {
        "copy": (lambda: y.copy_(x), 8 * elements),
        "update": (lambda: x.add_(1.0), 8 * elements),
        "read": (lambda: x.sum(), 4 * elements),
    }
    return {
        name: round(size / min(device_time(Contender(name, run)) for _ in range(12)) / 1e9, 1)
        for name, (run, size) in runs.items()
    }


def architecture() -> str:
    properties = torch.cuda.get_device_properties(0)
    return properties.gcnArchName if torch.version.hip else f"sm_{properties.major}{properties.minor}"
