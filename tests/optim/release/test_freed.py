"""Optimizers that work during the backward pass are freed with whoever holds them, and do not keep a model alive."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from regkernels import optim


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for _ in range(2):
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()


def released() -> list[Any]:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = optim.AdamW(model.parameters())
    release = optim.step_in_backward(optimizer, bucket_bytes=50)
    train(model, optimizer)
    return [model, optimizer, release, model[0].weight]


def offloaded(*, free: bool) -> list[Any]:
    model = nn.Linear(4, 4)
    optimizer = optim.CPUOffload(model.parameters(), free_gradients=free)
    train(model, optimizer)
    mirror = next(iter(optimizer._mirrors))
    return [model, optimizer, optimizer._inner, mirror, mirror.host]


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_model_optimizer_and_handle_are_freed_together() -> None:
    gone = [weakref.ref(part) for _ in range(10) for part in released()]
    gc.collect()
    assert not [ref for ref in gone if ref() is not None]


@pytest.mark.parametrize("make", [lambda: offloaded(free=False), lambda: offloaded(free=True)], ids=["", "free"])
@pytest.mark.usefixtures("without_collector")
def test_weights_on_the_cpu_do_not_wait_for_the_collector(make: Callable[[], list[Any]]) -> None:
    make()  # what is imported with the first step keeps frames
    gone = [weakref.ref(part) for part in make()]
    assert not [ref for ref in gone if ref() is not None]


@pytest.mark.parametrize("kept", ["optimizer", "handle"])
def test_either_of_optimizer_and_handle_is_enough(kept: str) -> None:
    model, optimizer, release, weight = released()
    keep = optimizer if kept == "optimizer" else release
    del optimizer, release
    gc.collect()
    before = weight.detach().clone()
    model(torch.ones(1, 4)).sum().backward()
    assert weight.grad is None and not torch.equal(weight, before)
    assert keep is not None


def test_it_is_said_once_that_nobody_updates_the_parameters_any_more() -> None:
    (model,) = released()[:1]
    gc.collect()
    weight = model[0].weight
    before = weight.detach().clone()
    with pytest.warns(RuntimeWarning, match=r"is gone: gradients are left.*Keep the optimizer"):
        model(torch.ones(1, 4)).sum().backward()
    assert weight.grad is not None and torch.equal(weight, before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.ones(1, 4)).sum().backward()


def test_another_optimizer_takes_over_in_silence() -> None:
    """As in a notebook, where a cell is run again."""
    (model,) = released()[:1]
    gc.collect()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    optim.step_in_backward(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.ones(1, 4)).sum().backward()
    assert model[0].weight.grad is None
