"""Where the elements of a rank stand in the whole parameter, against DTensors that hold these very numbers."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

from regkernels.distributed import index
from regkernels.table.grouping import GroupLayout, group_layout
from regkernels.table.segments import Runs
from tests.distributed import world
from tests.distributed.simulated import mesh

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
SHAPES = [(12, 5), (7, 6), (1, 4), (4, 7, 2, 3), (0, 3)]


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


def compared(sizes: tuple[int, ...], layout: str) -> tuple[list[Any], int]:
    """What differs, on each rank of a mesh; and how many parts consist of several runs."""
    different, several = [], 0
    for rank in range(math.prod(sizes)):
        with mesh(*sizes, rank=rank) as of_ranks:
            for shape, placements in product(SHAPES, MESHES[sizes]):
                param = distribute_tensor(numbered(shape, layout), of_ranks, placements, src_data_rank=None)
                # As it lies there, and as a kernel would find a copy of it.
                for own in (param.to_local(), param.to_local().contiguous()):
                    found = index.runs(param, own)
                    several += found is not None and len(found.places) > 1
                    is_right = elements(found, own.numel()).tolist() == in_memory(own).tolist()
                    if not is_right or not is_shortest(found):
                        different.append((rank, shape, str(placements), own.stride()))
    return different, several


def is_shortest(found: Runs | None) -> bool:
    """Whether no run is empty, and none goes on where the one before ends."""
    if found is None:
        return True
    ends = found.places + found.lengths
    return bool((found.lengths > 0).all() and (found.places[1:] != ends[:-1]).all())


SIZES = [(2**36,), (2**18, 2**18)]
"""Of parameters whose second half a rank holds."""


def half(shape: tuple[int, ...]) -> Runs | None:
    with mesh(2, rank=1) as of_ranks:
        own = torch.zeros(1).expand(shape[0] // 2, *shape[1:])
        whole = torch.empty(shape, device="meta")
        param = DTensor.from_local(own, of_ranks, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.stride())
        return index.runs(param, torch.empty(own.shape, device="meta"))


GROUPED = [((12, 5), 0, 2), ((5, 12), 1, 2), ((4, 9, 2), 1, 1), ((5, 3), 1, 1)]
"""Shapes, and the dimension and size of groups that three ranks hold as wholes."""


def grouped() -> list[tuple[Tensor, GroupLayout, GroupLayout, int, int]]:
    found = []
    for rank in range(3):
        with mesh(3, rank=rank) as of_ranks:
            for shape, dim, size in GROUPED:
                param = distribute_tensor(numbered(shape, "contiguous"), of_ranks, [Shard(dim)], src_data_rank=None)
                own = param.to_local()
                runs, given = index.runs(param, own), group_layout(own, dim, size)
                first = 0 if runs is None else int(runs.places[0])
                found.append((own.flatten(), given, *index.by_groups(runs, given, "weight"), first))
    return found


CASES = [*product(MESHES, ("contiguous", "transposed")), ((3,), "with_gaps")]


def everything(_: int) -> tuple[Any, ...]:
    return [compared(*case) for case in CASES], [half(shape) for shape in SIZES], grouped()


@pytest.fixture(scope="module")
def found() -> tuple[Any, ...]:
    """In a process of its own: DTensor holds on to meshes."""
    return world.run(1, everything)[0]


@pytest.mark.parametrize("case", range(len(CASES)), ids=[str(case) for case in CASES])
def test_runs_are_those_of_the_whole_memory(found: tuple[Any, ...], case: int) -> None:
    different, several = found[0][case]
    assert not different
    assert several > 5


@pytest.mark.parametrize("case", range(len(SIZES)))
def test_one_run_takes_no_memory_for_each_element(found: tuple[Any, ...], case: int) -> None:
    assert found[1][case] == (torch.tensor([2**35]), torch.tensor([2**35]))


def test_whole_groups_have_one_distance(found: tuple[Any, ...]) -> None:
    for own, given, layout, gap, first in found[2]:
        o = torch.arange(len(own)) // (layout[1] * layout[2])
        assert torch.equal(first + torch.arange(len(own)) + o * gap, own)
        assert torch.equal(members(*layout), members(*given))
    assert {gap for *_, gap, _ in found[2]} == {0, 8, 12, 2}


def test_plain_tensors_stand_at_the_beginning() -> None:
    assert index.runs(torch.zeros(3, 4), torch.zeros(3, 4)) is None
    assert index.runs(torch.tensor(1.0), torch.tensor(1.0)) is None


def members(outer: int, groups: int, inner: int) -> Tensor:
    """Of each element the group."""
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
        index.by_groups(Runs(*map(torch.tensor, zip(*runs, strict=True))), layout, "parameter 3")
