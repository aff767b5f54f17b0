"""What stories are made of: parameters, gradients, and steps after which an optimizer is looked at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from tests.support.engine import Build

Story = Iterator[torch.optim.Optimizer]

SHAPES = ((5, 7), (33,), (), (2, 3, 4))


def parameters(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes or SHAPES]


def give(params: Iterable[Tensor]) -> None:
    """New gradients, in memory of their own, as backward does it after zero_grad()."""
    for param in params:
        param.grad = torch.randn_like(param)


def steps(optimizer: torch.optim.Optimizer, count: int = 2) -> Story:
    for _ in range(count):
        give(param for group in optimizer.param_groups for param in group["params"])
        optimizer.step()
        yield optimizer


def trained(build: Build, *shapes: tuple[int, ...]) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    """Parameters and their optimizer after two steps: the second one reuses what the first one built."""
    params = parameters(*shapes)
    optimizer = build(params)
    list(steps(optimizer))
    return params, optimizer


def moments(state: dict[str, Tensor]) -> list[str]:
    return sorted(state.keys() - {"step"})
