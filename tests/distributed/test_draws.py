"""Stochastic rounding of parameters that are spread over ranks: the same bits as in one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

from regkernels import optim
from tests.distributed import world

SHAPES = [(7, 9), (16, 8), (5, 3, 4), (1, 12), (2, 40)]
OPTIONS: dict[str, dict[str, Any]] = {
    "weights": {"param_rounding": "stochastic"},
    "states": {"state_dtype": torch.bfloat16, "param_rounding": "master"},
    "both": {"state_dtype": torch.bfloat16, "param_rounding": "stochastic"},
    "rows": {"state_dtype": torch.bfloat16, "param_rounding": "stochastic", "group_l1": 0.05, "group_dim": 0},
    "columns": {"state_dtype": torch.bfloat16, "param_rounding": "stochastic", "group_l1": 0.05, "group_dim": 1},
}
MESHES: dict[int, list[tuple[tuple[int, ...], tuple[Any, ...]]]] = {
    2: [((2,), (Shard(0),)), ((2,), (Shard(1),)), ((2,), (Replicate(),))],
    3: [((3,), (Shard(0),)), ((3,), (Shard(1),))],
    4: [((2, 2), (Shard(0), Shard(1))), ((2, 2), (Shard(0), Shard(0))), ((2, 2), (Replicate(), Shard(1)))],
}
BY_GROUPS = {"rows": 0, "columns": 1}


def fits(option: str, placements: tuple[Any, ...]) -> bool:
    """Whether no group lies on several ranks."""
    dim = BY_GROUPS.get(option)
    return dim is None or all(placement.is_replicate() or placement.dim == dim for placement in placements)


def trained(option: str, mesh: Any = None, placements: Any = None) -> list[Tensor]:
    """Weights and states, as wholes, after three steps."""
    generator = torch.Generator().manual_seed(0)

    def spread(tensor: Tensor) -> Tensor:
        return tensor if mesh is None else distribute_tensor(tensor, mesh, placements)

    def random(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator).bfloat16()

    params = [nn.Parameter(spread(random(shape))) for shape in SHAPES]
    optimizer = optim.AdamW(params, lr=0.01, l1=0.1, seed=5, **OPTIONS[option])
    for _ in range(3):
        for param in params:
            param.grad = spread(random(tuple(param.shape)))
        optimizer.step()
    own = [tensor for param in params for tensor in (param.detach(), *optimizer.state[param].values())]
    return [tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor for tensor in own]


def spread_over(_: int, world_size: int) -> dict[tuple[int, str], list[Tensor]]:
    found = {}
    for index, (sizes, placements) in enumerate(MESHES[world_size]):
        mesh = init_device_mesh("cpu", sizes)
        for option in OPTIONS:
            if fits(option, placements):
                found[index, option] = trained(option, mesh, placements)
    return found


@pytest.mark.parametrize("world_size", MESHES)
def test_any_number_of_ranks_has_the_bits_of_one_process(world_size: int) -> None:
    results = world.run(world_size, spread_over, world_size)
    alone = {option: trained(option) for option in OPTIONS}
    for result in results:
        assert len(result) >= 3 * len(MESHES[world_size])
        for (index, option), tensors in result.items():
            for position, (tensor, wanted) in enumerate(zip(tensors, alone[option], strict=True)):
                assert torch.equal(tensor, wanted), (MESHES[world_size][index], option, position)
