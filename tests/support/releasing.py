"""The same training twice, with steps after the backward pass and within it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from regkernels import optim
from tests.support import cases, engine


class Net(nn.Module):
    """With a weight used twice, frozen and unused parameters, a transposed one, and branches."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.frozen = nn.Linear(5, 5).requires_grad_(False)
        self.tied = nn.Linear(5, 5)
        self.tied.weight = self.first.weight
        self.transposed = nn.Parameter((torch.randn(3, 5) / 4).t())
        self.scale = nn.Parameter(torch.ones(()))
        self.left, self.right = nn.Linear(3, 2), nn.Linear(3, 2)
        self.unused = nn.Parameter(torch.ones(7))

    def forward(self, x: Tensor, branch: str = "left") -> Tensor:
        hidden = torch.tanh(self.tied(self.frozen(torch.tanh(self.first(x)))))
        return getattr(self, branch)(hidden @ self.transposed * self.scale)


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    params = list(model.parameters())
    return [{"params": params[::2]}, {"params": params[1::2], "lr": 0.03, "l1": 0.0}]


def data(step: int, dtype: torch.dtype) -> Tensor:
    return torch.sin(torch.arange(20.0, dtype=torch.float64).view(4, 5) + step).to(dtype)


def closure_of(model: nn.Module, optimizer: Any, step: int) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(data(step, torch.float32)).square().mean()
        loss.backward()
        return loss

    return closure


class Twins:
    """The same training twice: one optimizer steps after the backward, the other within it."""

    def __init__(
        self, make: Callable[[Any], Any], dtype: torch.dtype = torch.float32, bucket_bytes: int = 100, before: int = 0
    ) -> None:
        self.dtype = dtype
        models = [Net().to(dtype)]
        models.append(copy.deepcopy(models[0]))
        self.models = models
        self.after, self.within = (make(groups_of(model)) for model in models)
        for step in range(before):
            for model, optimizer in zip(models, (self.after, self.within), strict=True):
                self.backward(model, step)
                optimizer.step()
                optimizer.zero_grad()
        self.release = optim.step_in_backward(self.within, bucket_bytes=bucket_bytes)

    def backward(self, model: nn.Module, step: int, branch: str = "left") -> None:
        model(data(step, self.dtype), branch).square().mean().backward()

    def train(self, steps: int = 3, branch: Callable[[int], str] = lambda step: "left") -> None:
        for step in range(steps):
            self.after.zero_grad()
            self.backward(self.models[0], step, branch(step))
            self.after.step()
            self.backward(self.models[1], step, branch(step))
            self.assert_same(step)

    def assert_same(self, note: object = "") -> None:
        assert all(param.grad is None for param in self.models[1].parameters())
        engine.assert_same(engine.snapshot(self.within), engine.snapshot(self.after), note)


def adamw(groups: Any, **options: Any) -> optim.Optimizer:
    return optim.AdamW(groups, **{**cases.STRENGTHS, "stats": True, **options})
