"""What does it cost that elements lie in many tensors? The same number of elements, in more and more of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import building, shapes
from benchmarks.building import FLAT, FOREACH, FUSED, OURS
from benchmarks.case import Case, Scope
from benchmarks.peers import Task

ELEMENTS = 2**20
COUNTS = (1, 10, 100, 1000, 10000)


def cases(scope: Scope) -> Iterator[Case]:
    for count in COUNTS[:-1] if scope.quick else COUNTS:
        yield building.step_case(
            "tensors",
            f"adamw: 2^20 elements, tensors: {count:,}",
            shapes.equal(count, ELEMENTS // count),
            Task("adamw"),
            [FUSED, FOREACH, OURS, FLAT],
            scope,
            x=float(count),
            clock="wall",  # with the host's work, which is what grows
        )


def test_tensors(benchmark: Any, timed: dict[str, Any]) -> None:
    benchmark.pedantic(**timed)
