"""Keeps state dicts for later versions: ``python -m tests.optim.checkpoint.kept 0.2`` writes data/states_0_2.pt.

Once a version is released its file is never written again: what it has is what users have on their disks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import regkernels as rk
from tests.optim.checkpoint.cases import OPTIMIZERS, PAIRS, PRECISIONS, snapshot

FOLDER = Path(__file__).with_name("data")
STEPS, FURTHER = 3, 2

Kept = dict[str, Any]
"""``weights`` and ``state`` after some steps, as tensors and numbers, and the weights ``after`` some more."""

NAMES = {
    f"{name}, {precision}{', flat' * flat}": (name, precision, flat)
    for name, precision in PAIRS
    for flat in (False, True)
}
"""Of what is kept: an optimizer, a precision, and whether the parameters lie in one buffer."""


def made(name: str, precision: str, flat: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Makes a model of a few weights, and an optimizer with what a run has: two groups, penalties, clipping."""
    torch.manual_seed(0)
    kind, arguments = OPTIMIZERS[name]
    dtype, options = PRECISIONS[precision]
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).to(dtype)
    if flat:
        rk.FlatParameters(model)
    penalty = {"l1": 1e-3, "l1_mode": "decoupled"} if kind == "Lion" else {"l1": 1e-3}
    groups = [{"params": [model[0].weight, model[1].weight], **penalty}, {"params": [model[0].bias, model[1].bias]}]
    return model, getattr(rk.optim, kind)(groups, lr=1e-2, **arguments, **options)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Takes steps with gradients that depend on nothing but their numbers."""
    for step in steps:
        for index, param in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(100 * step + index)
            gradient = torch.randn(param.shape, generator=generator).to(param.dtype)
            param.grad = gradient if param.grad is None else param.grad.copy_(gradient)
        optimizer.step()


def weights_of(model: nn.Module) -> list[Tensor]:
    return [param.detach().clone() for param in model.parameters()]


def written() -> Iterator[tuple[str, Kept]]:
    for key, case in NAMES.items():
        model, optimizer = made(*case)
        train(model, optimizer, range(STEPS))
        kept: Kept = {"weights": weights_of(model), "state": snapshot(optimizer.state_dict())}
        train(model, optimizer, range(STEPS, STEPS + FURTHER))
        yield key, {**kept, "after": weights_of(model)}


def main(version: str) -> None:
    path = FOLDER / f"states_{version.replace('.', '_')}.pt"
    if path.exists():
        sys.exit(f"{path.name} is there already: users of {version} have such files, and what is in them stays")
    torch.save(dict(written()), path)
    torch.load(path, weights_only=True)
    print(f"{path}: {len(NAMES)} optimizers, {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main(*sys.argv[1:])
