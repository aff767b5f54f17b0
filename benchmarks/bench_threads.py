"""How does a step become faster with threads? On a CPU; a GPU has no such question."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks import building, shapes
from benchmarks.building import FOREACH, FUSED, OURS
from benchmarks.case import Case, Contender, Scope
from benchmarks.peers import Task


def counts(most: int) -> list[int]:
    """Returns all of a few, else powers of two, and the most."""
    return sorted({*(range(1, most) if most <= 8 else (1 << n for n in range(most.bit_length()))), most})


def cases(scope: Scope) -> Iterator[Case]:
    if scope.device != "cpu":
        return
    most = torch.get_num_threads()
    for name in building.lists(scope, ["gpt2-small"], ["nanogpt"]):
        for count in counts(most):
            yield building.step_case(
                "threads",
                f"adamw, {count} of {most} threads: {shapes.describe(name)}",
                shapes.LISTS[name](),
                Task("adamw"),
                [FUSED, FOREACH, OURS],
                scope,
                wrap=partial(with_threads, count, most),
                shapes=name,
                x=float(count),
                remark=f"100 % is what the machine does with {most} threads",
            )


def with_threads(count: int, usual: int, contender: Contender) -> Contender:
    """Sets the number back at once, which takes a microsecond: nothing else is to run with fewer threads."""

    def run() -> None:
        contender.run()
        torch.set_num_threads(usual)

    return replace(contender, run=run, prepare=lambda: torch.set_num_threads(count))


def test_threads(benchmark: Any, timed: dict[str, Any]) -> None:
    benchmark.pedantic(**timed)
