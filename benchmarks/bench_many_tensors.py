"""What do many small tensors cost? One by one, and in the contiguous buffers of FlatParameters.

On a GPU, the time until the device is done, and that until the host may go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import building, shapes
from benchmarks.building import FLAT, FOREACH, FUSED, OURS
from benchmarks.case import Case, Scope
from benchmarks.peers import Task

LISTS = ("1000x1000", "2000x64", "10000x64")
CLOCKS = {"cpu": {"wall": ""}, "cuda": {"wall": "", "host": ", host time"}}


def cases(scope: Scope) -> Iterator[Case]:
    for name in LISTS[:2] if scope.quick and not scope.shapes else LISTS:
        if scope.shapes and name not in scope.shapes:
            continue
        for clock, what in CLOCKS[scope.device].items():
            yield building.step_case(
                "many_tensors",
                f"adamw{what}: {shapes.describe(name)}",
                shapes.LISTS[name](),
                Task("adamw"),
                [FUSED, FOREACH, OURS, FLAT],
                scope,
                shapes=name,
                clock=clock,
            )


def test_many_tensors(benchmark: Any, timed: dict[str, Any]) -> None:
    benchmark.pedantic(**timed)
