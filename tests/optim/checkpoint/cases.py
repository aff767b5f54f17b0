"""Optimizers and precisions as data, and a model some of whose parameters come late."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor, nn

import regkernels
from regkernels import optim

OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"weight_decay": 0.01}),
    "momentum": ("SGD", {"momentum": 0.9, "dampening": 0.25}),
    "nesterov": ("SGD", {"momentum": 0.8, "nesterov": True, "maximize": True}),
    "adam": ("Adam", {"betas": (0.8, 0.97), "weight_decay": 0.01}),
    "amsgrad": ("Adam", {"betas": (0.7, 0.4), "amsgrad": True}),
    "adamw": ("AdamW", {}),
    "radam": ("RAdam", {"betas": (0.8, 0.97), "decoupled_weight_decay": True}),
    "rmsprop": ("RMSprop", {"alpha": 0.9}),
    "rmsprop_all": ("RMSprop", {"alpha": 0.9, "momentum": 0.8, "centered": True}),
    "adagrad": ("Adagrad", {"lr_decay": 0.01, "initial_accumulator_value": 0.1}),
    "lion": ("Lion", {}),
}
"""Name of the class in regkernels.optim and, but for Lion, in torch.optim, and arguments that both know."""

EXCHANGEABLE = [name for name, (kind, _) in OPTIMIZERS.items() if hasattr(torch.optim, kind)]

PRECISIONS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32": (torch.float32, {}),
    "bfloat16, float32 states": (torch.bfloat16, {}),
    "float32, bfloat16 states": (torch.float32, {"state_dtype": torch.bfloat16, "seed": 3}),
    "stochastic": (torch.bfloat16, {"param_rounding": "stochastic", "state_dtype": torch.bfloat16, "seed": 5}),
    "stochastic float16": (torch.float16, {"param_rounding": "stochastic"}),
    "remainder": (torch.bfloat16, {"param_rounding": "remainder"}),
    "master": (torch.float16, {"param_rounding": "master"}),
}
"""The weights' dtype and arguments of the optimizer."""

PAIRS = [
    *((name, "float32") for name in OPTIMIZERS),
    *((name, precision) for name in ("sgd", "momentum", "adamw") for precision in PRECISIONS if precision != "float32"),
]
"""An optimizer and a precision: each of both, not each with each."""

Packed = dict[str, Any]
"""A state dict."""

LATE = 7
"""Steps before which a part of the model takes no part in the loss."""


class Model(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 9), nn.Dropout(0.2), nn.Tanh(), nn.Linear(9, 3)).to(dtype)
        self.late = nn.Linear(6, 3).to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor, step: int) -> Tensor:
        return self.body(x) + (self.late(x) if step >= LATE else 0)

    def backward(self, step: int) -> None:
        """Of a loss on random data: whoever does not restore the random state gets other gradients."""
        x = torch.randn(4, 6, dtype=torch.float64).to(self.dtype)
        ((self(x, step) - x[:, :3]) ** 2).mean().backward()


def ours(name: str, model: nn.Module, **more: Any) -> optim.Optimizer:
    kind, options = OPTIMIZERS[name]
    groups = regkernels.param_groups(model, l1=1e-3, weight_decay=options.get("weight_decay", 1e-2))
    return getattr(optim, kind)(groups, **{"lr": 0.02, **options, **more})


def theirs(name: str, model: nn.Module, **more: Any) -> torch.optim.Optimizer:
    kind, options = OPTIMIZERS[name]
    return getattr(torch.optim, kind)(pair_of_groups(model), foreach=False, **{"lr": 0.02, **options, **more})


def pair_of_groups(model: nn.Module) -> list[dict[str, Any]]:
    """The same grouping without penalties, for both sides."""
    params = list(model.parameters())
    return [
        {"params": [p for p in params if p.dim() > 1]},
        {"params": [p for p in params if p.dim() < 2], "lr": 0.05},
    ]


def train(optimizer: torch.optim.Optimizer, model: Model, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        optimizer.zero_grad()
        model.backward(step)
        optimizer.step()


def through_a_file(value: Any, **options: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True, **options)


def snapshot(value: Any) -> Any:
    """A copy of nested dictionaries and lists whose tensors share nothing with the original."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: snapshot(item) for key, item in value.items()}  # a plain one also of an OrderedDict
    if isinstance(value, (list, tuple)):
        return type(value)(snapshot(item) for item in value)
    return value


def assert_identical(a: Any, b: Any, where: str = "") -> None:
    """Of nested dictionaries and lists: the same keys, types, dtypes and bits."""
    assert type(a) is type(b), where
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape and a.device == b.device, where
        bits = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
        assert torch.equal(*bits), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_identical(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_identical(x, y, f"{where}[{index}]")
    else:
        assert a == b, where
