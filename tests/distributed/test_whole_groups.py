"""Groups of weights must lie on one rank each: found out from placements, beside where torch puts each index."""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore

from regkernels.distributed import shards
from tests.distributed import world

MESHES = ((2,), (3,), (2, 2), (2, 3), (3, 2))


def _placements(mesh: tuple[int, ...]) -> list[list[Any]]:
    if len(mesh) == 1:
        return [[Shard(0)], [Replicate()]]
    strided = [_StridedShard(0, split_factor=mesh[1]), Shard(0)]
    return [[Shard(0), Replicate()], [Replicate(), Shard(0)], [Shard(0), Shard(0)], strided]


def _compared(rank: int) -> tuple[int, list[Any]]:
    """One process plays all ranks, one after the other: no message is needed to split a tensor."""
    distributed.destroy_process_group()
    held: dict[Any, list[set[int]]] = {}
    told: dict[Any, bool] = {}
    for mesh_shape in MESHES:
        ranks = torch.Size(mesh_shape).numel()
        for played in range(ranks):
            distributed.init_process_group("fake", store=FakeStore(), rank=played, world_size=ranks)
            mesh = init_device_mesh("cpu", mesh_shape)
            for placements in _placements(mesh_shape):
                for length in range(1, 13):
                    tensor = distribute_tensor(torch.arange(length), mesh, placements, src_data_rank=None)
                    where = mesh_shape, str(placements), length
                    held.setdefault(where, []).append(set(tensor.to_local().tolist()))
                    for size in (size for size in range(1, 6) if length % size == 0):
                        told[*where, size] = shards.splits_groups(tensor, 0, size)
            distributed.destroy_process_group()
    wrong = []
    for (*where, length, size), said in told.items():
        groups = [set(range(begin, begin + size)) for begin in range(0, length, size)]
        split = any(0 < len(own & group) < size for own in held[*where, length] for group in groups)
        if split != said:
            wrong.append((*where, length, size))
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    return len(told), wrong


def test_exactly_the_groups_that_lie_on_several_ranks_are_found() -> None:
    ((count, wrong),) = world.run(1, _compared)
    assert count > 400 and not wrong
