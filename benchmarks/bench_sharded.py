"""What does a step cost on parameters that are spread over two processes?

Each of two ranks has half of the threads and half of a model; it is held against one process with half of the threads and a
model of that half. As two ranks share the memory's speed, two that know nothing of each other are timed as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Shard, init_device_mesh

import regkernels
from benchmarks import building, shapes
from benchmarks.building import OURS
from benchmarks.case import Case, Contender, Scope
from benchmarks.ranks import Ranks

RANKS = 2
SHARDED, APART = "regkernels, sharded", "regkernels, 2 processes"
DOING = {OURS: ("alone", 1), SHARDED: ("sharded", RANKS), APART: ("alone", RANKS)}
"""What is done, and on how many ranks."""
OPTIONS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adamw with clipping and stats": {"max_grad_norm": 1.0, "stats": True},
}
BYTES = 16
"""Of an element: weight, gradient and two states."""


def cases(scope: Scope) -> Iterator[Case]:
    if scope.device != "cpu":
        return
    threads = max(1, torch.get_num_threads() // RANKS)
    for name in building.lists(scope, ["gpt2-small"], ["nanogpt"]):
        own = half(shapes.LISTS[name]())
        elements = shapes.elements(own)
        for label, options in OPTIONS.items():
            world = cache(partial(Ranks, RANKS, threads, make, own, options))
            yield Case(
                "sharded",
                f"{label}, {elements / 1e6:.0f} M elements on each of {RANKS} ranks, threads of a rank: {threads}",
                {peer: partial(contender, world, *DOING[peer]) for peer in building.taking_part(list(DOING), scope)},
                memory=2 * RANKS * elements * BYTES,
                shapes=name,
                clock="wall",
            )


def half(of: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Returns what each rank has of a model whose rows are divided among them."""
    return [(-(-shape[0] // RANKS), *shape[1:]) for shape in of]


def contender(world: Any, what: str, ranks: int) -> Contender:
    return Contender(partial(world().do, what, ranks), keep=world())


def make(rank: int, own: list[tuple[int, ...]], options: dict[str, Any]) -> dict[str, Any]:
    """Makes, in a rank, a step of plain parameters, and one of the same number that are shards."""
    mesh = init_device_mesh("cpu", (RANKS,))
    tasks = {}
    for name in ("alone", "sharded"):
        params = [nn.Parameter(torch.randn(shape) * 0.02) for shape in own]
        for param in params:
            param.grad = torch.randn_like(param) * 0.01
        if name == "sharded":
            params = [shard(param, mesh) for param in params]
        optimizer = regkernels.optim.AdamW(params, lr=1e-4, l1=1e-6, **options)
        building.warm_up(optimizer.step)
        tasks[name] = optimizer.step
    return tasks


def shard(param: nn.Parameter, mesh: Any) -> nn.Parameter:
    assert param.grad is not None
    whole = nn.Parameter(DTensor.from_local(param.detach(), mesh, [Shard(0)]))
    whole.grad = DTensor.from_local(param.grad, mesh, [Shard(0)])
    return whole


def test_sharded(benchmark: Any, timed: dict[str, Any]) -> None:
    benchmark.pedantic(**timed)
