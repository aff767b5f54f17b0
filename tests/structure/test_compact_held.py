"""Modules and memory that are held where torch does not know of it stay as they are: whoever holds them may use them from there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regkernels as rk

pytestmark = pytest.mark.usefixtures("one_thread")


class Holder:
    """No module."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        return self.module(x)


class Inner(nn.Module):
    """Cannot be traced, and uses a layer of its neighbour's."""

    def __init__(self, held: Any, pick: Callable[[Any], Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.out = nn.Linear(8, 2)
        self.held, self.pick = held, pick

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return x
        return self.out(torch.relu(self.pick(self.held)(x)))


class Neighbours(nn.Module):
    def __init__(self, hold: Callable[[nn.Module], Any], pick: Callable[[Any], Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.sibling = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
        with torch.no_grad():
            self.sibling[0].weight[1::2] = 0
            self.sibling[0].bias[1::2] = 0
        self.inner = Inner(hold(self.sibling), pick)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.sibling(x)


def linear(weight: Tensor, x: Tensor) -> Tensor:
    return x @ weight.T


HELD: dict[str, tuple[Callable[[nn.Module], Any], Callable[[Any], Callable[[Tensor], Tensor]]]] = {
    "list": (lambda sibling: [sibling[0]], lambda held: held[0]),
    "dictionary of tuples": (lambda sibling: {"a": (sibling[0],)}, lambda held: held["a"][0]),
    "its parent": (lambda sibling: [sibling], lambda held: held[0][0]),
    "object": (lambda sibling: Holder(sibling[0]), lambda held: held),
    "method": (lambda sibling: sibling[0].forward, lambda held: held),
    "partial": (lambda sibling: functools.partial(sibling[0]), lambda held: held),
    "parameter": (lambda sibling: [sibling[0].weight], lambda held: functools.partial(linear, held[0])),
}


@pytest.mark.parametrize("case", HELD)
@pytest.mark.parametrize("with_example", [False, True])
def test_what_is_held_elsewhere_stays(case: str, with_example: bool) -> None:
    torch.manual_seed(0)
    model, x = Neighbours(*HELD[case]).eval(), torch.randn(5, 6)
    found = rk.compact(model, x if with_example else None)
    torch.testing.assert_close(found.model(x), model(x))
    assert found.parameters == found.parameters_before
    assert "sibling.0 is held in inner.held, too, where torch does not know of it" in str(found)


@pytest.mark.parametrize("part", [slice(None), slice(4)])
def test_a_buffer_in_the_memory_of_a_weight(part: slice) -> None:
    """The whole of it, and a view."""
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight[1::2] = 0
        model[0].bias[1::2] = 0
    assert rk.compact(model).removed
    model.register_buffer("mirror", model[0].weight.detach()[part])
    found = rk.compact(model)
    assert not found.removed and "0 shares a parameter with mirror" in str(found)
    assert torch.equal(found.model.mirror, model[0].weight[part])


def test_a_scale_in_whose_memory_another_buffer_lies_is_not_cut() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 2)
            self.register_buffer("scale", torch.ones(8))
            nn.init.zeros_(self.first.weight[:3])
            nn.init.zeros_(self.first.bias[:3])

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x) * self.scale)

    model = Scaled()
    assert rk.compact(model).removed
    model.register_buffer("mirror", model.scale[:])
    found = rk.compact(model)
    assert not found.removed and "scale, which belongs to them, cannot be cut: mirror lies in its memory" in str(found)
    found.model.scale.mul_(2)
    assert torch.equal(found.model.mirror, found.model.scale)


def test_buffers_that_only_share_with_each_other_lock_nothing() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight[1::2] = 0
        model[0].bias[1::2] = 0
    model.register_buffer("one", torch.zeros(3))
    model.register_buffer("other", model.one[:2])
    assert rk.compact(model).removed
