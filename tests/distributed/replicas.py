"""What replicas train, as data, and the same training in one process on the data of all of them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import regkernels
from tests.distributed import exact
from tests.support import cases, engine
from tests.support.training import within

STEPS = 3


@dataclass(frozen=True)
class Scenario:
    name: str
    rule: str = "adamw"
    options: dict[str, Any] = field(default_factory=dict)
    wrapper: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    flat: str = ""  # "before" or "after" the model is wrapped
    micro_batches: int = 1
    penalty: float = 0.0  # in the loss, beside the wrapped model
    left_out: str = ""  # "everywhere": a parameter that no rank uses; "here": another one on each rank
    overflow: bool = False  # in the gradient of the last rank, in the second step

    def __str__(self) -> str:
        return self.name

    def used(self, rank: int) -> list[int]:
        unused = {"everywhere": 1, "here": rank}.get(self.left_out)
        return [index for index in range(len(exact.SHAPES)) if index != unused]

    def data(self, rank: int, step: int, micro: int) -> list[torch.Tensor]:
        found = exact.data(rank, 10 * step + micro, self.dtype)
        return [tensor * (index in self.used(rank)) for index, tensor in enumerate(found)]


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    params = [param for param in model.parameters() if param.requires_grad]
    return [{"params": params[::2]}, {"params": params[1::2], "lr": 0.03, "weight_decay": 0.0}]


def make(model: nn.Module, scenario: Scenario) -> regkernels.optim.Optimizer:
    options = {**cases.STRENGTHS, "stats": True, **scenario.options}
    return engine.make(scenario.rule, groups_of(model), **options)  # type: ignore[return-value]


def train(rank: int, scenario: Scenario) -> list[engine.Outcome]:
    """This rank's weights, states and sums after each step."""
    model = exact.Linear(scenario.dtype)
    if rank > 0:
        torch.nn.init.ones_(model.weights[0])  # DistributedDataParallel hands out those of rank 0
    flat = regkernels.FlatParameters(model) if scenario.flat == "before" else None
    wrapped = DistributedDataParallel(model, **scenario.wrapper)
    if scenario.flat == "after":
        flat = regkernels.FlatParameters(model)
    optimizer = make(model, scenario)
    outcomes = []
    for step in range(STEPS):
        optimizer.zero_grad()
        for micro in range(scenario.micro_batches):
            with wrapped.no_sync() if micro + 1 < scenario.micro_batches else nullcontext():
                loss = wrapped(scenario.data(rank, step, micro), scenario.used(rank)) / scenario.micro_batches
                if scenario.penalty:
                    loss = loss + regkernels.l1_penalty(wrapped, scenario.penalty) / scenario.micro_batches
                if scenario.overflow and step == 1 and rank + 1 == torch.distributed.get_world_size():
                    loss = loss * float("inf")
                loss.backward()
        if flat is not None and not scenario.wrapper.get("gradient_as_bucket_view"):
            assert all(within(weight.grad, flat.gradients) for weight in model.weights)
        optimizer.step()
        outcomes.append(engine.snapshot(optimizer))
    return outcomes


def train_many(rank: int, scenarios: Iterable[Scenario]) -> list[list[engine.Outcome]]:
    return [train(rank, scenario) for scenario in scenarios]


def train_alone(scenario: Scenario, ranks: int) -> list[engine.Outcome]:
    """In one process, on all data at once."""
    model = exact.Linear(scenario.dtype)
    optimizer = make(model, scenario)
    outcomes = []
    for step in range(STEPS):
        optimizer.zero_grad()
        parts = [scenario.data(rank, step, n) for rank in range(ranks) for n in range(scenario.micro_batches)]
        used = sorted({index for rank in range(ranks) for index in scenario.used(rank)})
        loss = model(exact.mean(parts), used)
        if scenario.penalty:
            loss = loss + regkernels.l1_penalty(model, scenario.penalty)
        if scenario.overflow and step == 1:
            loss = loss * float("inf")
        loss.backward()
        optimizer.step()
        outcomes.append(engine.snapshot(optimizer))
    return outcomes
