"""What does it take until training is under way? Imports, and making an optimizer with its first step.

A first step makes states and tables of addresses. In a fresh process it also loads and, where nothing has been kept from
before, compiles: on a GPU, Triton's kernels.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import building, shapes
from benchmarks.building import FLAT, FOREACH, FUSED, OURS
from benchmarks.case import Case, Contender, Scope
from benchmarks.peers import PEERS, Task

TASK = Task("adamw")
IMPORTS = {"torch": "import torch", OURS: "import torch, regkernels"}
FIRST_STEP = "from benchmarks import bench_first_step as b; b.make_and_step({peer!r}, b.TINY, b.Scope({device!r}))"
TINY = shapes.equal(2, 8)


def cases(scope: Scope) -> Iterator[Case]:
    for name in building.lists(scope, ["gpt2-small", "10000x64"], ["nanogpt", "1000x1000"]):
        of = shapes.LISTS[name]()
        makers = {
            peer: partial(in_this_process, peer, of, scope)
            for peer in building.taking_part([FUSED, FOREACH, OURS, FLAT], scope)
        }
        # Weights and gradients of each contender, the states, and the buffers that FlatParameters moves them to.
        memory = 4 * shapes.elements(of) * (2 * len(makers) + 4)
        label = f"adamw made, and its first step: {shapes.describe(name)}"
        yield Case("first_step", label, makers, memory=memory, shapes=name, clock="wall")
    if scope.quick:  # a process takes seconds
        return
    yield Case("first_step", "import", {name: partial(fresh, code) for name, code in IMPORTS.items()}, clock="wall")
    codes = {peer: FIRST_STEP.format(peer=peer, device=scope.device) for peer in (FUSED, OURS)}
    makers = {peer: partial(fresh, code) for peer, code in codes.items()}
    yield Case("first_step", "from a new process to a first step, nothing compiled before", makers, clock="wall")


def make_and_step(peer: str, of: shapes.Shapes, scope: Scope) -> None:
    in_this_process(peer, of, scope).run()


def in_this_process(peer: str, of: shapes.Shapes, scope: Scope) -> Contender:
    params = building.parameters(of, scope)
    building.give(params, building.gradients(of, scope))
    return Contender(lambda: PEERS[peer].make(TASK, params)())


def fresh(code: str) -> Contender:
    """Runs ``code`` in a process of its own, with caches of compiled kernels that are empty."""
    folder = Path(__file__).parents[1]

    def run() -> None:
        with tempfile.TemporaryDirectory() as empty:
            caches = {"TRITON_CACHE_DIR": empty, "TORCHINDUCTOR_CACHE_DIR": empty}
            subprocess.run([sys.executable, "-c", code], cwd=folder, env=os.environ | caches, check=True)

    return Contender(run)


def test_first_step(benchmark: Any, timed: dict[str, Any]) -> None:
    benchmark.pedantic(**timed)
