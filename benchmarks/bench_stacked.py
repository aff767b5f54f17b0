"""Many small networks, an l1 each: what does a training step cost one after the other, and stacked?

Forward, backward and update of all of them, on the same batch. Stacked networks share every kernel, so that what is saved is
what Python and autograd cost per network; it is most of the time as long as the networks are small.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

import regkernels
from benchmarks import building
from benchmarks.building import OURS
from benchmarks.case import Case, Contender, Scope
from regkernels.selection import StackedModels

MODELS = 32
TORCH, STACKED = "torch", "regkernels, stacked"
SIZES = {"16-32-10": (16, 32, 32), "64-32-32-10": (64, 32, 64), "64-128-128-10": (64, 128, 128)}
"""Features, width of the hidden layers, rows of a batch."""
L1 = torch.logspace(-5, -2, MODELS).tolist()


def cases(scope: Scope) -> Iterator[Case]:
    for name in list(SIZES)[:2] if scope.quick else SIZES:
        features, width, rows = SIZES[name]
        data = cache(partial(batch, features, rows, scope))
        models = cache(partial(networks, features, width, deep=name.count("-") > 2, scope=scope))
        makers = {
            peer: partial(make, peer, models, data) for peer in building.taking_part([OURS, TORCH, STACKED], scope)
        }
        label = f"adamw, {MODELS} networks {name}, batches of {rows}"
        yield Case("stacked", label, makers, clock="device", x=MODELS)


def batch(features: int, rows: int, scope: Scope) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, features, device=scope.device), torch.randint(10, (rows,), device=scope.device)


def networks(features: int, width: int, *, deep: bool, scope: Scope) -> list[nn.Module]:
    hidden = [nn.Linear(width, width), nn.ReLU()] if deep else []
    return [
        nn.Sequential(nn.Linear(features, width), nn.ReLU(), *copy.deepcopy(hidden), nn.Linear(width, 10)).to(
            scope.device
        )
        for _ in range(MODELS)
    ]


def make(peer: str, models: Any, data: Any) -> Contender:
    own, (x, y) = copy.deepcopy(models()), data()
    step = stacked(own, x, y) if peer == STACKED else one_after_the_other(own, x, y, ours=peer == OURS)
    building.warm_up(step)
    return Contender(step, keep=own)


def stacked(models: list[nn.Module], x: Tensor, y: Tensor) -> Any:
    together = StackedModels(models)
    optimizer = regkernels.optim.AdamW(together.param_groups([{"l1": l1} for l1 in L1]), lr=1e-3)

    def step() -> None:
        together.losses(nn.functional.cross_entropy, x, y).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def one_after_the_other(models: list[nn.Module], x: Tensor, y: Tensor, *, ours: bool) -> Any:
    """Makes a step for one model after the other; torch's is without L1, which it does not have."""
    if ours:
        optimizers: list[torch.optim.Optimizer] = [
            regkernels.optim.AdamW(regkernels.param_groups(model, l1=l1), lr=1e-3)
            for model, l1 in zip(models, L1, strict=True)
        ]
    else:
        optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True) for model in models]

    def step() -> None:
        for model, optimizer in zip(models, optimizers, strict=True):
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()

    return step


def test_stacked(benchmark: Any, timed: dict[str, Any]) -> None:
    benchmark.pedantic(**timed)
