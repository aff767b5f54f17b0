"""From how many elements on does a step take time? One tensor, larger and larger."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import building, shapes
from benchmarks.building import FOREACH, FUSED, OURS
from benchmarks.case import Case, Scope
from benchmarks.peers import Task

EXPONENTS = range(10, 29, 2)
QUICK = (10, 16, 22)


def cases(scope: Scope) -> Iterator[Case]:
    for exponent in QUICK if scope.quick else EXPONENTS:
        yield building.step_case(
            "elements",
            f"adamw: one tensor of 2^{exponent} elements",
            shapes.equal(1, 2**exponent),
            Task("adamw"),
            [FUSED, FOREACH, OURS],
            scope,
            x=2.0**exponent,
        )


def test_elements(benchmark: Any, timed: dict[str, Any]) -> None:
    benchmark.pedantic(**timed)
