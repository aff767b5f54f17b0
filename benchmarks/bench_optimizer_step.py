"""How long does a step take, without regularisation? By rule, dtype of the weights, and model.

All rules by everyone for one model, all rules and dtypes for one long tensor, AdamW by a few for larger models, where
memory would not do for more. What takes minutes to compile is compiled once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from benchmarks import building, shapes
from benchmarks.building import FLAT, FOREACH, FUSED, OURS
from benchmarks.case import Case, Scope
from benchmarks.peers import Task

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
EVERYTHING = [(rule, dtype) for rule in building.STATES for dtype in DTYPES]
ADAMW = ("adamw", torch.float32)
USUAL = [*((rule, torch.float32) for rule in building.STATES), ("adamw", torch.bfloat16)]
MODEL, LONG, LARGE = "gpt2-small", "2^26", ("resnet50", "vit-b", "gpt2-medium")


def plan(scope: Scope) -> Iterator[tuple[str, str, torch.dtype, Sequence[str] | None]]:
    """Yields the list of shapes, rule, dtype, and who takes part: None stands for everyone."""
    if scope.shapes or scope.quick:
        for name in scope.shapes or ("nanogpt",):
            yield from ((name, *pair, None) for pair in (EVERYTHING if scope.shapes else USUAL))
        return
    yield from ((MODEL, *pair, None) for pair in USUAL)
    yield from ((LONG, *pair, None) for pair in EVERYTHING)
    for name in (*LARGE, *(["llama-1b"] if scope.device == "cuda" else [])):
        yield name, *ADAMW, (FUSED, FOREACH, OURS, FLAT)


def cases(scope: Scope) -> Iterator[Case]:
    for name, rule, dtype, chosen in plan(scope):
        task = Task(rule)
        everyone = [peer for peer in building.peers(task, scope) if "compiled" not in peer or (rule, dtype) == ADAMW]
        yield building.step_case(
            "optimizer_step",
            f"{rule}, {building.dtype_name(dtype)}: {shapes.describe(name)}",
            shapes.LISTS[name](),
            task,
            chosen or everyone,
            scope,
            dtype,
            shapes=name,
        )


def test_optimizer_step(benchmark: Any, timed: dict[str, Any]) -> None:
    benchmark.pedantic(**timed)
