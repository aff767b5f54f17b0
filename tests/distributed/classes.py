"""Parameters that are spread in several ways at once, on a rank of a simulated mesh: what this rank adds to sums."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed.tensor import Replicate, Shard

from regkernels import backends, optim
from tests.distributed import world
from tests.distributed.simulated import mesh, messages, spread

CASES = [((2, 2), (0, 0)), ((2, 2), (0, 1)), ((2, 2), (1, 0)), ((2, 2), (1, 1)), ((4,), (0,)), ((4,), (3,))]
"""Sizes of a mesh, and the place of the rank in it."""


def counted(
    _: int, sizes: tuple[int, ...], place: tuple[int, ...], backend: str
) -> tuple[Any, Any, list[tuple[int, int]]]:
    """Stats of a step, what they must be, and the messages it took. What is replicated counts on the first rank only."""
    with backends.use(backend):
        return _counted(sizes, place)


def check(sizes: tuple[int, ...], place: tuple[int, ...], backend: str) -> None:
    ((found, expected, sent),) = world.run(1, counted, sizes, place, backend)
    for own, wanted in zip(found, expected, strict=True):
        assert own == pytest.approx(wanted, rel=1e-12)
    assert [ranks for ranks, _ in sent] == [4, 4] and max(size for _, size in sent) <= 200


def _counted(sizes: tuple[int, ...], place: tuple[int, ...]) -> tuple[Any, Any, list[tuple[int, int]]]:
    generator = torch.Generator().manual_seed(0)
    rank = place[0] if len(place) == 1 else place[0] * sizes[1] + place[1]
    with mesh(*sizes, rank=rank) as of_ranks, messages() as sent:
        dims = len(sizes)
        ways = [(Shard(0), Shard(1)), (Shard(0), Replicate()), (Replicate(), Shard(1)), (Replicate(), Replicate())]
        ways = [way[:dims] for way in ways]
        owns = [torch.randn(3, 5, generator=generator) for _ in range(len(ways) + 1)]
        params = [spread(own.clone(), of_ranks, *way) for own, way in zip(owns, ways, strict=False)]
        params.append(torch.nn.Parameter(owns[-1].clone()))
        for param in params:
            param.grad = torch.ones_like(param)
        groups = [{"params": params[:2]}, {"params": params[2:]}]
        optimizer = optim.SGD(groups, lr=0.0, max_grad_norm=1e9, stats=True)
        optimizer.step()
        optimizer.step()
        stats = optimizer.stats
        assert stats is not None
        del sent[: len(sent) // 2]
        counts = [
            all(at == 0 for at, placement in zip(place, way, strict=True) if placement.is_replicate()) for way in ways
        ]
        counts.append(not any(place))
        l1 = [float(own.double().abs().sum()) * here for own, here in zip(owns, counts, strict=True)]
        expected = ([sum(l1[:2]), sum(l1[2:])], [15 * sum(counts[:2]), 15 * sum(counts[2:])], (15 * sum(counts)) ** 0.5)
        found = (stats.l1_norm.tolist(), stats.nonzeros.tolist(), stats.grad_norm.item())
    return found, expected, sent
