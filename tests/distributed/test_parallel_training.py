"""Models that torch shards, trained by its own forward and backward: each step is that of one process with the same gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from regkernels import optim
from tests.distributed import world
from tests.distributed.topologies import Layers, both, fully_sharded, layers, tensor_parallel

BFLOAT16 = torch.bfloat16


class Training(NamedTuple):
    ranks: int
    spread: Callable[[Layers, DeviceMesh], Any]
    shape: tuple[int, ...]
    options: dict[str, Any] = {}  # noqa: RUF012
    dtype: torch.dtype = torch.float32
    accumulated: int = 1  # backward passes in a step
    wide: int = 8


def _fully_sharded(**options: Any) -> Callable[[Layers, DeviceMesh], Any]:
    def spread(model: Layers, mesh: DeviceMesh) -> None:
        for layer in (model.rising, model.falling):
            fully_shard(layer, mesh=mesh, **options)
        fully_shard(model, mesh=mesh, **options)

    return spread


TRAININGS = {
    "FSDP2": Training(2, fully_sharded, (2,), {"l1": 0.01, "weight_decay_mode": "prox"}, wide=5),
    "FSDP2, 3 ranks": Training(3, fully_sharded, (3,), wide=5),
    "parameters that stay gathered": Training(2, _fully_sharded(reshard_after_forward=False), (2,)),
    "mixed precision": Training(
        2, _fully_sharded(mp_policy=MixedPrecisionPolicy(param_dtype=BFLOAT16, reduce_dtype=torch.float32)), (2,)
    ),
    "bfloat16 weights": Training(2, fully_sharded, (2,), {"param_rounding": "remainder"}, BFLOAT16, wide=5),
    "accumulated": Training(2, fully_sharded, (2,), accumulated=3),
    "tensor parallel": Training(2, tensor_parallel, (2,)),
    "HSDP": Training(4, fully_sharded, (2, 2), wide=5),
    "FSDP2 and tensor parallel": Training(4, both, (2, 2)),
}


def _batch(step: int, part: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * step + part)
    return torch.randn(4, 6, generator=generator)


def _full(tensor: Any) -> Tensor:
    if tensor.dtype == torch.int16:  # which gloo cannot send
        tensor = tensor.int()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()  # type: ignore[no-any-return]


def _train(rank: int, training: Training) -> tuple[list[bool], list[str]]:
    """Whether parameters and states have the bits of a twin with whole ones, and how gradients are spread."""
    torch.manual_seed(0)
    whole = [param.detach().to(training.dtype) for param in Layers(training.wide).parameters()]
    model = layers(training.spread, whole, *training.shape, wide=training.wide, dtype=training.dtype)
    params, alone = list(model.parameters()), [nn.Parameter(tensor.clone()) for tensor in whole]
    options = {"lr": 0.01, **training.options}
    optimizer, twin = optim.AdamW(params, **options), optim.AdamW(alone, **options)
    same, kinds = [], set()
    for step in range(4):
        for part in range(training.accumulated):
            if training.accumulated > 1:
                model.set_requires_gradient_sync(part == training.accumulated - 1)
            data = rank // (2 if training.spread in (both, tensor_parallel) else 1)
            output = model(_batch(step, 10 * data + part).to(training.dtype))
            (output.full_tensor() if isinstance(output, DTensor) else output).float().square().mean().backward()
        for param, own in zip(params, alone, strict=True):
            assert param.grad is not None
            own.grad = _full(param.grad)
            kinds.update(map(str, getattr(param.grad, "placements", ["plain"])))
        optimizer.step()
        twin.step()
        for param, own in zip(params, alone, strict=True):
            same.append(torch.equal(_full(param), own))
            for name, state in twin.state[own].items():
                same.append(torch.equal(_full(optimizer.state[param][name]), _full(state)))
        assert not all(torch.equal(own, before) for own, before in zip(alone, whole, strict=True))
        optimizer.zero_grad()
    return same, sorted(kinds)


def _on_ranks(rank: int, names: list[str]) -> dict[str, tuple[list[bool], list[str]]]:
    found = {}
    for name in names:
        found[name] = _train(rank, TRAININGS[name])
        distributed.barrier()
    return found


@pytest.fixture(scope="module")
def trained() -> dict[str, list[tuple[list[bool], list[str]]]]:
    return world.run_each(_on_ranks, {name: training.ranks for name, training in TRAININGS.items()})


@pytest.mark.parametrize("name", TRAININGS)
def test_bits_are_those_of_one_process_with_the_same_gradients(trained: Any, name: str) -> None:
    for same, kinds in trained[name]:
        assert len(same) >= 4 * 4 * len(list(Layers().parameters())) and all(same)
        assert ("P(sum)" in kinds) == (name == "tensor parallel")
