"""A regression problem in batches of a fixed order, and the loop that frameworks are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

# Large enough that some weights are exactly zero after a few steps of `OPTIMIZERS`.
REGULARISED: dict[str, Any] = {"l1": 0.05, "weight_decay": 0.02, "weight_decay_mode": "prox"}

# Types of weights, and what keeps the part of an update that is below their precision.
FORMATS = [
    (torch.float32, "nearest"),
    *((torch.bfloat16, rounding) for rounding in ("nearest", "stochastic", "remainder", "master")),
]


def data(dtype: torch.dtype = torch.float32) -> TensorDataset:
    """48 rows of 5 features and 3 targets."""
    x = torch.sin(torch.arange(240.0, dtype=torch.float64).view(48, 5) ** 1.5)
    return TensorDataset(x.to(dtype), (x[:, :3] - x[:, 2:]).to(dtype))


def loader(dtype: torch.dtype = torch.float32) -> DataLoader[Any]:
    """12 batches, always in the same order."""
    return DataLoader(data(dtype), batch_size=4)


def loss_of(model: nn.Module, batch: Iterable[Tensor]) -> Tensor:
    x, y = batch
    return nn.functional.mse_loss(model(x), y)


def plain_loop(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Any],
    *,
    accumulate: int = 1,
    clip: float | None = None,
    after: Callable[[], Any] = lambda: None,
) -> None:
    """Steps after every ``accumulate`` batches, with gradients clipped to a norm of ``clip``; then calls ``after``."""
    for index, batch in enumerate(batches, 1):
        (loss_of(model, batch) / accumulate).backward()
        if index % accumulate == 0:
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
            after()


def zeros(model: nn.Module, dimensions: int = 2) -> int:
    """Number of weights that are exactly zero in tensors of that many dimensions."""
    return sum(int((param == 0).sum()) for param in model.parameters() if param.dim() == dimensions)
