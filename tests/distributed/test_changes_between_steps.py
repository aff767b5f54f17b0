"""What happens to parameters that are spread over ranks while they are trained, beside the same in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

from regkernels import optim
from tests.distributed import world
from tests.distributed.stories import STORIES, Spread


def _told(rank: int, stories: tuple[Callable[[Spread], list[Tensor]], ...]) -> list[Any]:
    found: list[Any] = []
    for story in stories:
        torch.manual_seed(0)
        found.append(story(Spread()))
        distributed.barrier()
    return found


@pytest.fixture(scope="module")
def told() -> list[list[list[Tensor]]]:
    return world.run(2, _told, STORIES)


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_weights_and_states_have_the_bits_of_one_process(
    told: list[list[list[Tensor]]], story: Callable[[Spread], list[Tensor]]
) -> None:
    torch.manual_seed(0)
    expected = story(Spread())
    for of_rank in told:
        found = of_rank[STORIES.index(story)]
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)


def _without_gradients(rank: int) -> list[Any]:
    """The second rank has none in the second step, and none at all in the first optimizer."""
    found: list[Any] = []
    for options in (
        {},
        {"max_grad_norm": 0.5},
        {"stats": True},
        {"max_grad_norm": 0.5, "skip_nonfinite": True, "stats": True},
    ):
        for late in (False, True):
            of = Spread()
            params = of.params()
            optimizer = optim.SGD(params, lr=0.5, **options)  # type: ignore[arg-type]
            for step in (1, 2, 3):
                of.give(params, step)
                if rank == 1 and not (late and step == 1):
                    optimizer.zero_grad()
                optimizer.step()
            stats = getattr(optimizer, "stats", None)
            sums = None if stats is None else [value.tolist() for value in stats]
            norms = [float(param.detach().full_tensor().norm()) for param in params]  # type: ignore[attr-defined]
            found.append((sums, norms))
            distributed.barrier()
    return found


def test_a_rank_without_gradients_takes_part_in_sums() -> None:
    first, second = world.run(2, _without_gradients)
    assert first == second
