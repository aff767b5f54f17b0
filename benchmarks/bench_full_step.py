"""How long does a regularised step take? The textbook recipe, a penalty by autograd before the step, against one pass.

The recipe adds the penalty's gradient to the loss's, clips if asked, steps, and computes again what is to be logged. It
is compiled for the first task only: that takes minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import building, shapes
from benchmarks.case import Case, Scope
from benchmarks.peers import Task

PENALISED = Task("adamw", building.L1, building.L2)
TASKS = {
    "L1 and L2": PENALISED,
    "L1, L2 and clipping": PENALISED._replace(max_grad_norm=1.0),
    "L1, L2, clipping and logging": PENALISED._replace(max_grad_norm=1.0, stats=True),
}


def cases(scope: Scope) -> Iterator[Case]:
    for name in building.lists(scope, ["gpt2-small", "resnet50"], ["nanogpt"]):
        for what, task in TASKS.items():
            label = f"adamw, {what}: {shapes.describe(name)}"
            peers = [peer for peer in building.peers(task, scope) if "compiled" not in peer or task is PENALISED]
            yield building.step_case("full_step", label, shapes.LISTS[name](), task, peers, scope, shapes=name)


def test_full_step(benchmark: Any, timed: dict[str, Any]) -> None:
    benchmark.pedantic(**timed)
