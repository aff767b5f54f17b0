"""The same training twice, with a plain optimizer and with one that is kept on the CPU; the CPU plays the accelerator."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from regkernels import optim
from tests.support import cases, engine
from tests.support.releasing import Net, data, groups_of


class Pair:
    """Of models: the first has ``optimizer_class`` itself, the second has it offloaded."""

    def __init__(
        self,
        optimizer_class: type[optim.Optimizer] = optim.AdamW,
        *,
        free: bool = False,
        dtype: torch.dtype = torch.float32,
        groups: Callable[[nn.Module], Any] = groups_of,
        **options: Any,
    ) -> None:
        self.dtype, self.free = dtype, free
        model = Net().to(dtype)
        self.models = [model, copy.deepcopy(model)]
        self.plain = optimizer_class(groups(self.models[0]), **{"param_rounding": "master", **options})
        self.offloaded = optim.CPUOffload(groups(self.models[1]), optimizer_class, free_gradients=free, **options)

    @property
    def both(self) -> list[tuple[nn.Module, Any]]:
        return list(zip(self.models, (self.plain, self.offloaded), strict=True))

    def backward(self, step: int, branch: str = "left", scale: float = 1.0) -> None:
        for model in self.models:
            (model(data(step, self.dtype), branch).square().mean() * scale).backward()

    def step(self, note: object = "") -> None:
        for _, optimizer in self.both:
            optimizer.step()
        self.assert_same(note)

    def zero_grad(self) -> None:
        for _, optimizer in self.both:
            optimizer.zero_grad()

    def train(self, steps: int = 3, branch: Callable[[int], str] = lambda step: "left") -> None:
        for step in range(steps):
            self.zero_grad()
            self.backward(step, branch(step))
            self.step(step)

    def assert_same(self, note: object = "") -> None:
        """Every bit, of the sums, too: both form them in one order."""
        got, expected = engine.snapshot(self.offloaded), engine.snapshot(self.plain)
        assert got.keys() == expected.keys(), note
        for name, tensor in expected.items():
            engine.assert_same_bits(got[name], tensor, f"{note}: {name}")


def of_case(case: cases.Case, **more: Any) -> Pair:
    name, _ = cases.RULES[case.rule]
    return Pair(getattr(optim, name), **{**case.options, **more})
