"""Measures in turns how long forward takes on one thread.

The clock is the thread's processor time: on an idle machine it is what a clock on the wall shows, and on a busy one it leaves out
the time that others have had the processor, which hits long measurements more often than short ones.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from statistics import median, quantiles
from time import thread_time
from typing import NamedTuple

import torch
from torch import Tensor, nn

_WARM_UP = 3  # rounds
_AT_LEAST = 1e-3  # seconds per measurement, so that the clock and the loop around it do not count


class Time(NamedTuple):
    """Holds medians over rounds. ``speedup``: the time of the first network over this one's, in the same round; ``low``, ``high``: its 20th
    and 80th percentile."""

    name: str
    batch: int
    microseconds: float
    speedup: float
    low: float
    high: float


def forward_times(networks: Mapping[str, nn.Module], images: Tensor, rounds: int) -> list[Time]:
    """Measures one `Time` per network. In each round all have their turn, so that what else the machine does meets all alike."""
    names = list(networks)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        with torch.inference_mode():
            calls = {name: max(1, round(_AT_LEAST / _once(networks[name], images, 3))) for name in names}
            for turn in range(-_WARM_UP, rounds):
                first = turn % len(names)  # nobody always comes after the same one
                for name in names[first:] + names[:first]:
                    networks[name](images)  # brings its weights back into the caches
                    taken = _once(networks[name], images, calls[name])
                    if turn >= 0:
                        seconds[name].append(taken)
    finally:
        if collecting:
            gc.enable()
    return [_time(name, len(images), seconds[name], seconds[names[0]]) for name in names]


def _once(network: nn.Module, images: Tensor, calls: int) -> float:
    start = thread_time()
    for _ in range(calls):
        network(images)
    return (thread_time() - start) / calls


def _time(name: str, batch: int, seconds: list[float], baseline: list[float]) -> Time:
    ratios = [theirs / ours for theirs, ours in zip(baseline, seconds, strict=True)]
    fifths = quantiles(ratios, n=5, method="inclusive")
    return Time(name, batch, 1e6 * median(seconds), median(ratios), fifths[0], fifths[-1])
