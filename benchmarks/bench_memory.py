"""How much memory does a step need, beyond parameters, gradients and states? The peak, of a step after others."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks import building, peak, shapes
from benchmarks.bench_full_step import TASKS
from benchmarks.case import Case, Contender, Scope
from benchmarks.peers import Task

QUESTIONS = {"nothing else": Task("adamw")} | TASKS


def cases(scope: Scope) -> Iterator[Case]:
    for name in building.lists(scope, ["gpt2-small"], ["nanogpt"]):
        for what, task in QUESTIONS.items() if not scope.quick else list(QUESTIONS.items())[::3]:
            peaks: dict[str, int] = {}
            label = f"adamw, {what}: {shapes.describe(name)}"
            case = building.step_case(
                "memory",
                label,
                shapes.LISTS[name](),
                task,
                building.peers(task, scope),
                scope,
                shapes=name,
                peaks=peaks,
            )
            for peer, make in case.contenders.items():
                case.contenders[peer] = partial(with_peak, make, peer, peaks, scope.device)
            yield case


def with_peak(make: Any, peer: str, peaks: dict[str, int], device: str) -> Contender:
    contender: Contender = make()
    peaks[peer] = peak.of(contender.run, device)
    return contender


def test_memory(benchmark: Any, timed: dict[str, Any]) -> None:
    benchmark.pedantic(**timed)
