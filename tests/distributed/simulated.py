"""A group of ranks of which only one exists: torch's fake process group, whose collectives change nothing.

One per process: DTensor's caches of operations hold on to the first mesh, whose groups would be gone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore


@contextmanager
def mesh(*sizes: int, rank: int = 0) -> Iterator[Any]:
    """A mesh of all ranks, as ``rank`` sees it."""
    world_size = math.prod(sizes)
    if distributed.is_initialized():  # by `tests.distributed.world`
        distributed.destroy_process_group()
    distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield init_device_mesh("cpu", sizes, mesh_dim_names=tuple("abc"[: len(sizes)]))
    finally:
        distributed.destroy_process_group()


@contextmanager
def messages() -> Iterator[list[tuple[int, int]]]:
    """The ranks and bytes of each all-reduce within."""
    found: list[tuple[int, int]] = []
    real = distributed.all_reduce

    def all_reduce(tensor: Tensor, *args: Any, group: Any = None, **more: Any) -> Any:
        found.append((distributed.get_world_size(group), tensor.nbytes))
        return real(tensor, *args, group=group, **more)

    distributed.all_reduce = all_reduce
    try:
        yield found
    finally:
        distributed.all_reduce = real


def spread(own: Tensor, mesh: Any, *placements: Any) -> torch.nn.Parameter:
    """A parameter of which this rank holds ``own``."""
    return torch.nn.Parameter(DTensor.from_local(own, mesh, placements, run_check=False))
