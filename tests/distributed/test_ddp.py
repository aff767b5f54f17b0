"""DistributedDataParallel: replicas stay equal in every bit, and equal to one process that trains on all data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import regkernels
from regkernels import optim
from tests.distributed import exact, replicas, world
from tests.distributed.replicas import Scenario
from tests.support import cases, engine

VIEWS = {"gradient_as_bucket_view": True}
SMALL_BUCKETS = {"bucket_cap_mb": 0.0005}

SCENARIOS = [
    *(Scenario(rule, rule, {"l1_mode": cases.l1_modes(rule)[0]}, VIEWS) for rule in cases.RULES),
    Scenario("copied gradients"),
    Scenario("small buckets", wrapper=SMALL_BUCKETS),
    Scenario("small buckets, views", wrapper={**SMALL_BUCKETS, **VIEWS}),
    Scenario("static graph", wrapper={"static_graph": True}),
    Scenario("static graph, views", wrapper={"static_graph": True, **VIEWS}),
    Scenario("clipping", options={"max_grad_norm": 30.0}),
    Scenario("clipping, views", options={"max_grad_norm": 30.0}, wrapper=VIEWS),
    Scenario("group lasso", options={"group_l1": 0.4, "group_weight": "ones"}, wrapper=VIEWS),
    Scenario("group lasso by columns", "sgd", {"group_l1": 0.4, "group_dim": -1}),
    Scenario("mcp", "momentum", {"l1": 0.0, "mcp": 0.2}, VIEWS),
    Scenario("two micro-batches", micro_batches=2),
    Scenario("two micro-batches, views", wrapper=VIEWS, micro_batches=2, options={"max_grad_norm": 30.0}),
    Scenario("penalty in the loss", options={"l1": 0.0}, penalty=12.0),
    Scenario("penalty in the loss, views", options={"l1": 0.0}, wrapper=VIEWS, penalty=12.0),
    Scenario("penalty in the loss, micro-batches", options={"l1": 0.0}, micro_batches=2, penalty=12.0),
    Scenario("penalty in the loss, unused parameters", options={"l1": 0.0}, left_out="everywhere", penalty=12.0),
    Scenario("penalty in the loss, static graph", penalty=12.0, wrapper={"static_graph": True}, left_out="everywhere"),
    *(
        Scenario(f"parameter unused {where}, {word}", wrapper={"find_unused_parameters": True, **views}, left_out=where)
        for where in ("everywhere", "here")
        for word, views in (("copied", {}), ("views", VIEWS))
    ),
    *(
        Scenario(f"flat {when}, {word}", wrapper=views, flat=when, options={"max_grad_norm": 30.0}, micro_batches=2)
        for when in ("before", "after")
        for word, views in (("copied", {}), ("views", VIEWS))
    ),
    *(
        Scenario(
            f"bfloat16, {rounding}",
            options={"param_rounding": rounding, "seed": 5},
            dtype=torch.bfloat16,
            wrapper=VIEWS,
        )
        for rounding in ("nearest", "stochastic", "remainder", "master")
    ),
    Scenario("bfloat16 states", options={"state_dtype": torch.bfloat16, "seed": 5}, wrapper=VIEWS),
    Scenario("overflow on one rank", options={"skip_nonfinite": True, "max_grad_norm": 30.0}, overflow=True),
]
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}

Outcomes = dict[tuple[int, str], list[list[engine.Outcome]]]


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    """Of each number of ranks and scenario: what each rank has after each step."""
    found: Outcomes = {}
    for size in (2, 3):
        ranks = world.run(size, replicas.train_many, SCENARIOS, timeout=240)
        found.update({(size, scenario.name): list(of) for scenario, *of in zip(SCENARIOS, *ranks, strict=True)})
    return found


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("size", [2, 3])
def test_the_same_bits_as_in_one_process(size: int, name: str, outcomes: Outcomes) -> None:
    expected = replicas.train_alone(BY_NAME[name], size)
    for rank, got in enumerate(outcomes[size, name]):
        for step in range(replicas.STEPS):
            engine.assert_same(got[step], expected[step], f"rank {rank}, step {step}")


def test_scenarios_do_what_they_are_named_after() -> None:
    """Clipping clips, and so on: else the test above would compare the same thing again and again."""
    plain = replicas.train_alone(BY_NAME["copied gradients"], 2)[-1]
    for name in ("clipping", "group lasso", "penalty in the loss", "overflow on one rank", "bfloat16 states"):
        other = replicas.train_alone(BY_NAME[name], 2)[-1]
        assert not any(map(torch.equal, engine.values_of(plain, "weight"), engine.values_of(other, "weight"))), name


# --- a network ---


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Linear(5, 7), nn.Linear(7, 3), nn.Linear(7, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(x))
        return torch.where(x[:, :1] > 0, self.left(hidden), self.right(hidden))


def _network(rank: int, size: int, options: dict[str, Any]) -> list[torch.Tensor]:
    torch.manual_seed(3)
    model = Branches().double()
    x, y = torch.randn(12, 5, dtype=torch.float64), torch.randn(12, 3, dtype=torch.float64)
    if size > 1:
        wrapped = DistributedDataParallel(model, find_unused_parameters=True, gradient_as_bucket_view=True)
        x, y = x.chunk(size)[rank], y.chunk(size)[rank]
    else:
        wrapped = model
    optimizer = optim.AdamW(model.parameters(), lr=0.02, **options)
    for _ in range(20):
        optimizer.zero_grad()
        (wrapped(x) - y).square().mean().backward()
        optimizer.step()
    return [param.detach() for param in model.parameters()]


@pytest.mark.parametrize("size", [2, 3])
def test_a_network(size: int) -> None:
    options = {"l1": 0.02, "max_grad_norm": 0.3, "weight_decay": 0.1}
    first, *others = world.run(size, _network, size, options)
    for other in others:
        assert all(map(torch.equal, first, other))
    alone = _network(0, 1, options)
    torch.testing.assert_close(first, alone, rtol=1e-9, atol=1e-9)
    zeros = torch.cat([weight.flatten() for weight in first]) == 0
    assert zeros.any() and not zeros.all()


# --- what is refused ---


def _released(rank: int) -> str:
    model = exact.Linear()
    DistributedDataParallel(model)
    with pytest.raises(RuntimeError) as error:
        optim.step_in_backward(optim.SGD(model.parameters(), lr=0.1))
    return str(error.value)


def test_steps_in_backward_are_refused() -> None:
    """A hook of a gradient runs before it is reduced, and replicas would drift apart."""
    for told in world.run(2, _released):
        assert "with 2 processes" in told and "Call optimizer.step() after the backward instead" in told


def _penalty_beside_unused(rank: int) -> str:
    model = DistributedDataParallel(exact.Linear(), find_unused_parameters=True)
    with pytest.raises(RuntimeError) as error:
        (model(exact.data(rank, 0), [1, 2]) + regkernels.l1_penalty(model, 1.0)).backward()
    return str(error.value)


def test_a_penalty_beside_a_model_that_looks_for_unused_parameters_is_refused_by_torch() -> None:
    """They get a gradient, from the penalty. The other settings of DistributedDataParallel are right, as seen above."""
    for told in world.run(2, _penalty_beside_unused):
        assert "has been marked as ready twice" in told
