"""How long does the value of an elastic net penalty take? Forward alone, as for a log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import penalising
from benchmarks.case import Case, Scope


def cases(scope: Scope) -> Iterator[Case]:
    return penalising.cases("penalty_forward", scope, backward=False)


def test_penalty_forward(benchmark: Any, timed: dict[str, Any]) -> None:
    benchmark.pedantic(**timed)
