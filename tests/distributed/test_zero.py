"""ZeroRedundancyOptimizer: each rank updates some of the parameters, and the result is that of one process."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel
from torch.optim import lr_scheduler

import regkernels
from regkernels import optim
from tests.distributed import exact, world
from tests.support import cases

STEPS = 4
CLIPPING = {"max_grad_norm": 30.0}


@dataclass(frozen=True)
class Scenario:
    name: str
    kind: str = "AdamW"
    options: dict[str, Any] = field(default_factory=dict)
    views: bool = False  # parameters_as_bucket_view
    group: bool = False  # is said, and not found
    flat: bool = False
    offload: dict[str, Any] | None = None  # arguments of `CPUOffload`
    used: tuple[int, ...] = tuple(range(len(exact.SHAPES)))  # parameters that have a gradient
    given: tuple[int, ...] = tuple(range(len(exact.SHAPES)))  # those that the optimizer has
    infinite: tuple[int, ...] = ()  # those whose gradient is, in the first and the third step
    schedule: bool = False
    added: bool = False  # the last parameter: a group that comes after two steps
    resumed: bool = False  # after two steps, from a state dict

    def __str__(self) -> str:
        return self.name


SCENARIOS = [
    *(
        Scenario(kind, kind, {**cases.STRENGTHS, "l1_mode": mode})
        for kind, mode in (("SGD", "prox"), ("Lion", "decoupled"))
    ),
    Scenario("momentum", "SGD", {"momentum": 0.9}),
    *(
        Scenario(f"AdamW, {word}", options=cases.STRENGTHS, views=views)
        for word, views in (("alone", False), ("views", True))
    ),
    Scenario("group lasso", options={"group_l1": 0.3, "group_weight": "ones"}),
    Scenario("flat", options=cases.STRENGTHS, flat=True),
    Scenario("clipping", options=CLIPPING),
    Scenario("clipping, views", options=CLIPPING, group=True, views=True),
    Scenario("clipping, fewer parameters than ranks", options=CLIPPING, given=(0,), used=(0,)),
    Scenario("clipping, fewer gradients than ranks", options=CLIPPING, used=(2,)),
    Scenario("clipping, no gradient at all", options=CLIPPING, given=(1, 2), used=(4,)),
    Scenario("overflow", options={"skip_nonfinite": True}, infinite=(1,)),
    Scenario("overflow and clipping", options={"skip_nonfinite": True, **CLIPPING}, infinite=(0, 4)),
    Scenario("schedule", options={"lr": 0.05, "l1": 0.1}, schedule=True),
    Scenario("added group", options={"l1": 0.1}, added=True),
    Scenario("added group, clipping, views", options={"l1": 0.1, **CLIPPING}, added=True, views=True),
    Scenario("offload, clipping", options={**cases.STRENGTHS, **CLIPPING}, offload={}),
    Scenario("offload, freed, resumed", "SGD", {"momentum": 0.9}, resumed=True, offload={"free_gradients": True}),
    Scenario("resumed", options={"l1": 0.1, "amsgrad": True}, resumed=True),
    Scenario("resumed, views", options={"l1": 0.1, **CLIPPING}, resumed=True, views=True),
    Scenario("bfloat16 states, resumed", "SGD", {"momentum": 0.9, "param_rounding": "master"}, resumed=True),
]
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}

Make = Callable[[list[dict[str, Any]]], Any]


def groups_of(model: exact.Linear, scenario: Scenario) -> list[dict[str, Any]]:
    params = [model.weights[index] for index in scenario.given]
    if scenario.added:
        params = params[:-1]
    return [{"params": params[::2]}, {"params": params[1::2], "lr": 0.03, "weight_decay": 0.0}]


def train(
    model: exact.Linear, loss: Callable[[int], Tensor], scenario: Scenario, make: Make
) -> tuple[list[Tensor], Any]:
    optimizer = make(groups_of(model, scenario))
    schedule = lr_scheduler.StepLR(optimizer, 1, 0.5) if scenario.schedule else None
    for step in range(STEPS):
        if step == 2 and scenario.added:
            optimizer.add_param_group({"params": [model.weights[-1]], "l1": 0.7})
        if step == 2 and scenario.resumed:
            saved = saved_state(optimizer)
            optimizer = make(groups_of(model, scenario))
            optimizer.load_state_dict(saved)
        optimizer.zero_grad()
        loss(step).backward()
        for index in scenario.infinite if step % 2 == 0 else ():
            model.weights[index].grad.view(-1)[-1] = float("inf")
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return [weight.detach().clone() for weight in model.weights], optimizer


def saved_state(optimizer: Any) -> dict[str, Any]:
    """On every rank."""
    if not hasattr(optimizer, "consolidate_state_dict"):
        return optimizer.state_dict()
    optimizer.consolidate_state_dict(to=0)
    found = [optimizer.state_dict() if distributed.get_rank() == 0 else None]
    distributed.broadcast_object_list(found)
    return found[0]


def sharded(rank: int, scenario: Scenario) -> tuple[list[Tensor], Any, Any]:
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns of what it does itself, in each process

    model = exact.Linear()
    if scenario.flat:
        regkernels.FlatParameters(model)
    wrapped = DistributedDataParallel(model, find_unused_parameters=len(scenario.used) < len(exact.SHAPES))
    kind: Any = getattr(optim, scenario.kind)
    if scenario.offload is not None:
        kind = functools.partial(optim.CPUOffload, optimizer_class=kind, **scenario.offload)
    if scenario.group:
        kind = functools.partial(kind, process_group=distributed.group.WORLD)

    def make(groups: list[dict[str, Any]]) -> ZeroRedundancyOptimizer:
        options = {"stats": True, **scenario.options}
        return ZeroRedundancyOptimizer(groups, kind, parameters_as_bucket_view=scenario.views, **options)

    weights, optimizer = train(model, lambda step: wrapped(exact.data(rank, step), scenario.used), scenario, make)
    return weights, saved_state(optimizer)["state"], optimizer.optim.stats


def sharded_many(rank: int, scenarios: Iterable[Scenario]) -> list[Any]:
    return [sharded(rank, scenario) for scenario in scenarios]


def alone(scenario: Scenario, ranks: int) -> tuple[list[Tensor], Any, Any]:
    model = exact.Linear()

    def loss(step: int) -> Tensor:
        return model(exact.mean([exact.data(rank, step) for rank in range(ranks)]), scenario.used)

    def make(groups: list[dict[str, Any]]) -> Any:
        return getattr(optim, scenario.kind)(groups, stats=True, **scenario.options)

    weights, optimizer = train(model, loss, scenario, make)
    return weights, optimizer.state_dict()["state"], optimizer.stats


@pytest.fixture(scope="module")
def results() -> dict[tuple[int, str], list[Any]]:
    found: dict[tuple[int, str], list[Any]] = {}
    for size in (2, 3):
        ranks = world.run(size, sharded_many, SCENARIOS, timeout=120)
        found.update({(size, scenario.name): list(of) for scenario, *of in zip(SCENARIOS, *ranks, strict=True)})
    return found


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("size", [2, 3])
def test_the_same_as_in_one_process(size: int, name: str, results: dict[tuple[int, str], list[Any]]) -> None:
    scenario = BY_NAME[name]
    weights, states, stats = alone(scenario, size)
    for rank, (got, got_states, got_stats) in enumerate(results[size, name]):
        assert all(map(torch.equal, got, weights)), rank
        assert got_states.keys() == states.keys()
        for index, state in states.items():
            assert got_states[index].keys() == state.keys()
            for key, value in state.items():
                assert torch.equal(torch.as_tensor(got_states[index][key]), torch.as_tensor(value)), (index, key)
        torch.testing.assert_close(got_stats, stats, rtol=1e-6, atol=0.0, equal_nan=True)


# --- attach_prox ---


def _attached(rank: int, views: bool) -> list[Tensor]:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = exact.Linear()
    wrapped = DistributedDataParallel(model)

    def make(groups: list[dict[str, Any]]) -> ZeroRedundancyOptimizer:
        optimizer = ZeroRedundancyOptimizer(groups, torch.optim.Adam, parameters_as_bucket_view=views, foreach=False)
        with pytest.raises(TypeError, match=re.escape("attach_prox(optimizer.optim, ...), on every rank")):
            regkernels.attach_prox(optimizer, l1=0.3, metric="adam")
        regkernels.attach_prox(optimizer.optim, l1=0.3)
        return optimizer

    return train(model, lambda step: wrapped(exact.data(rank, step)), Scenario("attached", schedule=True), make)[0]


@pytest.mark.parametrize("views", [False, True])
def test_attach_prox_works_on_the_optimizer_of_each_rank(views: bool) -> None:
    model = exact.Linear()

    def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(groups, foreach=False)
        regkernels.attach_prox(optimizer, l1=0.3)
        return optimizer

    def loss(step: int) -> Tensor:
        return model(exact.mean([exact.data(rank, step) for rank in range(2)]))

    expected, _ = train(model, loss, Scenario("attached", schedule=True), make)
    for got in world.run(2, _attached, views):
        assert all(map(torch.equal, got, expected))


def _with_weights(rank: int) -> str:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    params = list(exact.Linear().weights)
    group = {"params": params, "l1": 0.1, "l1_weights": [torch.ones_like(param) for param in params]}
    with pytest.raises(ValueError, match="l1_weights") as error:
        ZeroRedundancyOptimizer([group], optim.AdamW)
    return str(error.value)


def test_l1_weights_are_not_shared_out_and_so_refused() -> None:
    """ZeroRedundancyOptimizer gives each rank some of the parameters, and all of the weights."""
    for told in world.run(2, _with_weights):
        assert "one tensor per parameter of the group" in told and "got 6 of them" in told
