"""How long does a step take, without regularisation? By rule, dtype of the weights, and model.

All of it, by everyone, for one model or those that were asked for; AdamW by a few for the others, as larger models leave
no memory for more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks import building, shapes
from benchmarks.building import FLAT, FOREACH, FUSED, OURS
from benchmarks.case import Case, Scope
from benchmarks.peers import Task

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ADAMW = [("adamw", torch.float32)]
EVERYTHING = [(rule, dtype) for rule in building.STATES for dtype in DTYPES]
QUICK = [*((rule, torch.float32) for rule in building.STATES), ("adamw", torch.bfloat16)]


def cases(scope: Scope) -> Iterator[Case]:
    usual = ["gpt2-small", "resnet50", "vit-b", "gpt2-medium", *(["llama-1b"] if scope.device == "cuda" else [])]
    for name in building.lists(scope, usual, ["nanogpt"]):
        all_of_it = scope.shapes or scope.quick or name == usual[0]
        for rule, dtype in QUICK if scope.quick else EVERYTHING if all_of_it else ADAMW:
            label = f"{rule}, {building.dtype_name(dtype)}: {shapes.describe(name)}"
            task = Task(rule)
            peers = building.peers(task, scope) if all_of_it else [FUSED, FOREACH, OURS, FLAT]
            yield building.step_case(
                "optimizer_step", label, shapes.LISTS[name](), task, peers, scope, dtype, shapes=name
            )


def test_optimizer_step(benchmark: Any, timed: dict[str, Any]) -> None:
    benchmark.pedantic(**timed)
