"""How long does an elastic net penalty in the loss take? Forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import penalising
from benchmarks.case import Case, Scope


def cases(scope: Scope) -> Iterator[Case]:
    return penalising.cases("penalty_backward", scope, backward=True)


def test_penalty_backward(benchmark: Any, timed: dict[str, Any]) -> None:
    benchmark.pedantic(**timed)
