"""A small model trained by one of the optimizers, or by torch's, for tests of everything around the arithmetic."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regkernels import optim

OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": 0.05}),
    "momentum": ("SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 0.25, "weight_decay": 0.1}),
    "adam": ("Adam", {"lr": 0.02, "weight_decay": 0.1}),
    "adamw": ("AdamW", {"lr": 0.02, "weight_decay": 0.1, "amsgrad": True}),
    "rmsprop": ("RMSprop", {"lr": 0.01, "alpha": 0.9, "weight_decay": 0.1, "momentum": 0.5, "centered": True}),
    "adagrad": ("Adagrad", {"lr": 0.05, "weight_decay": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.2}),
    "radam": ("RAdam", {"lr": 0.02, "betas": (0.9, 0.95), "weight_decay": 0.1}),
}

each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def ours(name: str, params: Any, **more: Any) -> optim.Optimizer:
    kind, options = OPTIMIZERS[name]
    return getattr(optim, kind)(params, **{**options, **more})


def theirs(name: str, params: Any, **more: Any) -> torch.optim.Optimizer:
    kind, options = OPTIMIZERS[name]
    return getattr(torch.optim, kind)(params, foreach=False, **{**options, **more})


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def twins(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    return model, copy.deepcopy(model)


def backward(model: nn.Module, step: int = 0) -> Tensor:
    """A loss with gradients that depend on the weights and the step only, not on the random state."""
    dtype = next(model.parameters()).dtype
    x = torch.sin(torch.arange(20.0, dtype=torch.float64).view(4, 5) + step).to(dtype)
    loss = ((model(x) - x[:, :3]) ** 2).mean()
    loss.backward()
    return loss


def train(optimizer: torch.optim.Optimizer, model: nn.Module, steps: Iterable[int], *after: Callable[[], Any]) -> None:
    for step in steps:
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
        for call in after:
            call()


def states(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """Of a state dict, without those that torch's Adagrad makes of parameters which have taken no step."""
    return {k: state for k, state in optimizer.state_dict()["state"].items() if state.get("step", 1) > 0}


def weights(model: nn.Module) -> list[Tensor]:
    return [param.detach().clone() for param in model.parameters()]


def assert_near(a: nn.Module, b: nn.Module, tolerance: float = 1e-12) -> None:
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


def assert_equal(a: nn.Module, b: nn.Module) -> None:
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def within(tensor: Tensor, buffers: Iterable[Tensor]) -> bool:
    """Whether a dense tensor lies in the memory of one of the buffers."""
    begins = tensor.data_ptr()
    ends = begins + tensor.numel() * tensor.element_size()
    return any(b.data_ptr() <= begins and ends <= b.data_ptr() + b.nbytes for b in buffers) or tensor.numel() == 0


def has_momentum(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a scheduler has something to cycle: all but Adagrad have."""
    return not isinstance(optimizer, torch.optim.Adagrad | optim.Adagrad)
