"""A model whose gradients are whole numbers, so that sums and means of them are exact in any order, on any number of ranks.

Its loss is linear in the weights: the mean over ranks of sum(weight * data). What remains to be compared bit for bit is
everything that happens between a gradient and a weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

SHAPES = ((7, 5), (3,), (), (17, 3), (8, 8), (40, 7))
"""Sizes that leave their successors in a bucket at every alignment."""

DIVISIBLE = 12
"""By 2 and by 3 ranks, by 2 micro-batches."""


class Linear(nn.Module):
    """Parameters of `SHAPES`, a frozen one in their midst; ``forward`` is the loss."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        weights = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]
        self.weights = nn.ParameterList(weights)
        self.frozen = nn.Parameter(torch.ones(5, dtype=dtype), requires_grad=False)

    def forward(self, data: Sequence[Tensor], used: Iterable[int] = range(len(SHAPES))) -> Tensor:
        weights = list(self.weights)
        return sum(((weights[i] * data[i]).sum() for i in used), self.frozen.sum() * 0)


def data(rank: int, step: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Of one rank and one micro-batch: multiples of `DIVISIBLE` that have 8 bits, with zeros among them."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    return [(torch.randint(-4, 5, shape, generator=generator) * DIVISIBLE).to(dtype) for shape in SHAPES]


def mean(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Of the data of several ranks: what one process gets."""
    return [torch.stack(tensors).double().mean(0).to(tensors[0].dtype) for tensors in zip(*parts, strict=True)]
