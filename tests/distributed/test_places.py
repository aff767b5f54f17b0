"""Where the elements of a rank stand in the whole parameter, against DTensors that hold these very numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore

from regkernels.distributed import places
from regkernels.grouping import GroupLayout, group_layout
from regkernels.segments import Runs

MESHES: dict[tuple[int, ...], list[tuple[Any, ...]]] = {
    (3,): [(Shard(0),), (Shard(1),), (Shard(-1),), (Replicate(),)],
    (2, 3): [
        (Shard(0), Shard(1)),
        (Shard(1), Shard(0)),
        (Shard(0), Shard(0)),
        (Shard(1), Shard(1)),
        (Replicate(), Shard(0)),
        (_StridedShard(0, split_factor=3), Shard(0)),
        (_StridedShard(1, split_factor=3), Replicate()),
    ],
}
SHAPES = [(12, 5), (7, 6), (2, 9), (1, 4), (5, 4, 3), (4, 7, 2, 3), (0, 3)]


@contextmanager
def mesh_of(shape: tuple[int, ...], rank: int) -> Iterator[Any]:
    """A mesh as one of its ranks sees it, without the others: nothing here sends a message."""
    distributed.init_process_group("fake", rank=rank, world_size=math.prod(shape), store=FakeStore())
    try:
        yield init_device_mesh("cpu", shape)
    finally:
        distributed.destroy_process_group()


def numbered(shape: tuple[int, ...], layout: str) -> Tensor:
    """Elements that say where in memory they stand."""
    numbers = torch.arange(math.prod(shape))
    if layout == "contiguous":
        return numbers.view(shape)
    if layout == "transposed":
        return numbers.view(shape[::-1]).permute(*reversed(range(len(shape))))
    return torch.stack([numbers, numbers]).T[:, 0].view(shape)  # every other element: places are those of a copy


def in_memory(dense: Tensor) -> Tensor:
    order = sorted(range(dense.dim()), key=lambda dim: -dense.stride(dim))
    return dense.permute(order).flatten()


def elements(found: Runs | None, numel: int) -> Tensor:
    return torch.arange(numel) if found is None else found.of_elements()


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "with_gaps"])
@pytest.mark.parametrize("mesh_shape", MESHES, ids=str)
def test_runs_are_those_of_the_whole_memory(mesh_shape: tuple[int, ...], layout: str) -> None:
    several = 0
    for rank in range(math.prod(mesh_shape)):
        with mesh_of(mesh_shape, rank) as mesh:
            for shape, placements in product(SHAPES, MESHES[mesh_shape]):
                param = distribute_tensor(numbered(shape, layout), mesh, placements, src_data_rank=None)
                # As it lies there, and as a kernel would find a copy of it.
                for own in (param.to_local(), param.to_local().contiguous()):
                    found = places.runs(param, own)
                    told = (rank, shape, placements, own.stride())
                    assert elements(found, own.numel()).tolist() == in_memory(own).tolist(), told
                    if found is not None:
                        assert found.lengths.min() > 0, told
                        assert (found.places[1:] != (found.places + found.lengths)[:-1]).all(), told
                        several += len(found.places) > 1
    assert several > 10


def test_plain_tensors_stand_at_the_beginning() -> None:
    assert places.runs(torch.zeros(3, 4), torch.zeros(3, 4)) is None
    assert places.runs(torch.tensor(1.0), torch.tensor(1.0)) is None


@pytest.mark.parametrize("shape", [(2**36,), (2**18, 2**18)], ids=str)
def test_one_run_takes_no_memory_for_each_element(shape: tuple[int, ...]) -> None:
    with mesh_of((2,), 1) as mesh:
        own = torch.zeros(1).expand(shape[0] // 2, *shape[1:])
        whole = torch.empty(shape, device="meta")
        param = DTensor.from_local(own, mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.stride())
        own = torch.empty(own.shape, device="meta")
        assert places.runs(param, own) == Runs(torch.tensor([2**35]), torch.tensor([2**35]))


@pytest.mark.parametrize(
    ("shape", "dim", "size"), [((12, 5), 0, 2), ((5, 12), 1, 2), ((4, 9, 2), 1, 1), ((5, 3), 1, 1)]
)
def test_whole_groups_have_one_distance(shape: tuple[int, ...], dim: int, size: int) -> None:
    for rank in range(3):
        with mesh_of((3,), rank) as mesh:
            param = distribute_tensor(numbered(shape, "contiguous"), mesh, [Shard(dim)], src_data_rank=None)
            own = param.to_local()
        given = group_layout(own, dim, size)
        found = places.runs(param, own)
        layout, gap = places.by_groups(found, given, "weight")
        first = 0 if found is None else int(found.places[0])
        o = torch.arange(own.numel()) // (layout.groups * layout.inner)
        assert torch.equal(first + torch.arange(own.numel()) + o * gap, own.flatten())
        assert torch.equal(members(layout), members(given))


def members(layout: GroupLayout) -> Tensor:
    """Of each element the group."""
    outer, groups, inner = layout
    return torch.arange(groups).repeat_interleave(inner).repeat(outer)


@pytest.mark.parametrize(
    ("runs", "layout"),
    [
        ([(0, 4), (9, 4), (18, 3)], GroupLayout(1, 1, 11)),
        ([(0, 4), (9, 4), (19, 4)], GroupLayout(3, 2, 2)),
        ([(0, 4), (9, 4), (18, 4)], GroupLayout(1, 6, 2)),
    ],
)
def test_other_patterns_are_refused(runs: list[tuple[int, int]], layout: GroupLayout) -> None:
    with pytest.raises(
        ValueError, match=r"^parameter 3 is updated by groups with stochastic rounding.*param_rounding='master'"
    ):
        places.by_groups(Runs(*map(torch.tensor, zip(*runs, strict=True))), layout, "parameter 3")
