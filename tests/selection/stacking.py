"""Small models, and training them together or one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from regkernels import optim
from regkernels.selection import StackedModels

K = 5
CLOSE = 1e-10

OPTIMIZERS: dict[str, tuple[Callable[..., optim.Optimizer], dict[str, Any]]] = {
    "sgd": (optim.SGD, {"lr": 0.1}),
    "momentum": (optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay_mode": "prox"}),
    "adam": (optim.Adam, {"lr": 0.01, "weight_decay_mode": "prox"}),
    "adamw": (optim.AdamW, {"lr": 0.01}),
}
ROWS = [{"l1": 0.02 * k, "weight_decay": 0.05 * (K - k), "lr": 0.004 * (k + 1)} for k in range(K)]


def network(seed: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def convolution(seed: int) -> nn.Module:
    """With buffers, and a parameter that is not trained."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten())
    model.append(nn.Linear(16, 3)).double()
    model[5].bias.requires_grad_(False)
    return model


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6, dtype=torch.float64)
        self.second = nn.Linear(6, 6, dtype=torch.float64)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


def batches(count: int = 30, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(count, 16, 6, generator=generator, dtype=dtype)
    return [(rows, rows[:, :3].argmax(1)) for rows in x]


def alone(
    model: nn.Module,
    optimizer: optim.Optimizer,
    data: list[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
) -> None:
    for x, y in data:
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()


def together(stacked: StackedModels, optimizer: torch.optim.Optimizer, data: list[tuple[Tensor, Tensor]]) -> None:
    for x, y in data:
        stacked.losses(cross_entropy, x, y).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def assert_same(ours: nn.Module, expected: nn.Module, close: float = CLOSE) -> None:
    for (name, a), b in zip(ours.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=close, atol=close, msg=lambda text, name=name: f"{name}: {text}")
        assert torch.equal(a == 0, b == 0), name
