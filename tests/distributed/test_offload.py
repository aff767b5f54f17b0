"""`CPUOffload` on several ranks: the bits of the plain optimizer, and gradients that leave when they are reduced, not before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from regkernels import optim
from regkernels.distributed import check_agreement
from tests.distributed import world
from tests.support import engine

STEPS, MICRO_BATCHES = 3, 2
OPTIONS: dict[str, Any] = {"lr": 0.05, "l1": 0.01, "max_grad_norm": 0.1, "stats": True}


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for layer in (model[0], model[2]):
        fully_shard(layer)
    return fully_shard(model)


def replicated(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def with_views(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)


class Split(nn.Module):
    """The weights of a network spread by hand, as tensor parallelism does: autograd itself brings their gradients."""

    def __init__(self, model: nn.Module) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Shard, distribute_tensor

        super().__init__()
        mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
        self.weights = nn.ParameterList(
            nn.Parameter(distribute_tensor(param.detach(), mesh, [Shard(0)])) for param in model.parameters()
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([(weight.full_tensor() * x.mean()).square().sum() for weight in self.weights])


WAYS: dict[str, tuple[Callable[[nn.Module], nn.Module], bool]] = {
    "fully_shard": (sharded, True),
    "DDP": (replicated, False),
    "DDP with views": (with_views, False),
    "tensor parallel": (Split, False),
}
"""How a model is spread, and whether its gradients are complete when their hooks run."""


def trained(rank: int, way: str, free: bool) -> tuple[list[bool], list[bool], dict[str, Tensor]]:
    """Of the last step: which gradients had left before it, which were freed behind it, and the whole weights."""
    models = [WAYS[way][0](network()) for _ in range(2)]
    plain = optim.AdamW(models[0].parameters(), **OPTIONS)
    offloaded = optim.CPUOffload(models[1].parameters(), free_gradients=free, **OPTIONS)
    for step in range(STEPS):
        for model, optimizer in zip(models, (plain, offloaded), strict=True):
            optimizer.zero_grad()
            for number in range(MICRO_BATCHES):
                x = torch.sin(torch.arange(20.0).view(4, 5) + step + number + (0 if way == "tensor parallel" else rank))
                model(x).square().mean().backward()
            if optimizer is offloaded:
                left = [mirror.holds for mirror in offloaded._mirrors]
            versions = [param._version for param in model.parameters()]
            optimizer.step()
            assert all(p._version > seen for p, seen in zip(model.parameters(), versions, strict=True)), (
                "unseen by autograd"
            )
        assert_same_shards(offloaded, plain, f"step {step}")
        if step == 0:
            exchange_states(models, plain, offloaded)
    check_agreement(offloaded)
    freed = [param.grad is None for param in models[1].parameters()]
    return left, freed, {str(i): whole(param) for i, param in enumerate(models[1].parameters())}


def assert_same_shards(got: torch.optim.Optimizer, expected: torch.optim.Optimizer, note: str) -> None:
    ours, theirs = engine.snapshot(got), engine.snapshot(expected)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert type(ours[name]) is type(tensor), name
        own, other = (value.to_local() if hasattr(value, "to_local") else value for value in (ours[name], tensor))
        engine.assert_same_bits(own, other, f"{note}: {name}")


def exchange_states(models: list[nn.Module], plain: Any, offloaded: Any) -> None:
    """Through torch.distributed.checkpoint's state dicts, each to the other; and weights that are loaded anew."""
    from torch.distributed.checkpoint import state_dict as dcp

    both = list(zip(models, (plain, offloaded), strict=True))
    weights = cloned(dcp.get_model_state_dict(models[0]))
    for model, optimizer in both:
        optimizer.zero_grad()
        dcp.set_model_state_dict(model, {name: value * 0.5 for name, value in weights.items()})
    states = [cloned(dcp.get_optimizer_state_dict(model, optimizer)) for model, optimizer in both]
    for (model, optimizer), state in zip(both, reversed(states), strict=True):
        dcp.set_optimizer_state_dict(model, optimizer, state)


def cloned(state_dict: Any) -> Any:
    return tree_map(lambda value: value.detach().clone() if isinstance(value, Tensor) else value, state_dict)


def whole(tensor: Any) -> Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def all_cases(rank: int) -> dict[tuple[str, bool], Any]:
    return {(way, free): trained(rank, way, free) for way in WAYS for free in (False, True)}


@pytest.fixture(scope="module", params=[2, 3])
def results(request: pytest.FixtureRequest) -> list[dict[tuple[str, bool], Any]]:
    """Three ranks: the shards of seven rows are uneven, of three one row each; two ranks: one of two rows, one of one."""
    return world.run(request.param, all_cases)


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_ranks(results: list[dict[tuple[str, bool], Any]], way: str, free: bool) -> None:
    first = results[0][way, False][2]
    for of_rank in results:
        left, freed, weights = of_rank[way, free]
        assert set(left) == {free and WAYS[way][1]}
        assert set(freed) == {free}
        for name, weight in weights.items():
            assert torch.equal(weight, first[name]), "ranks, or ways to take gradients, differ"
