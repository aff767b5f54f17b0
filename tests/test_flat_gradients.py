"""Gradients of `FlatParameters`: reset in every way there is, and after the memory under them was exchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from regkernels import FlatParameters
from tests.support.training import assert_equal, backward, each_optimizer, network, ours, train, twins, within

pytestmark = pytest.mark.usefixtures("one_thread")


ZERO: dict[str, Callable[[Any, nn.Module, FlatParameters], None]] = {
    "optimizer": lambda o, m, f: o.zero_grad(),
    "optimizer, set_to_none=False": lambda o, m, f: o.zero_grad(set_to_none=False),
    "flat": lambda o, m, f: f.zero_grad(),
    "module": lambda o, m, f: m.zero_grad(),
    "module, set_to_none=False": lambda o, m, f: m.zero_grad(set_to_none=False),
    "by hand": lambda o, m, f: [setattr(p, "grad", None) for p in m.parameters()],
    "torch": lambda o, m, f: torch.optim.SGD(m.parameters()).zero_grad(),
    "torch, then flat": lambda o, m, f: (m.zero_grad(), f.zero_grad()),
}


@pytest.mark.parametrize("way", ZERO)
@each_optimizer
def test_every_way_to_reset_gradients_is_right(name: str, way: str) -> None:
    model, other = twins(network())
    flat = FlatParameters(model)
    optimizer, reference = ours(name, model.parameters()), ours(name, other.parameters())
    for step in range(4):
        ZERO[way](optimizer, model, flat)
        reference.zero_grad()
        backward(model, step)
        backward(other, step)
        optimizer.step()
        reference.step()
        assert_equal(model, other)
    if way not in ("module", "by hand", "torch"):
        assert all(within(param.grad, flat.gradients) for param in model.parameters())
    optimizer.zero_grad()
    for param in model.parameters():
        assert within(param.grad, flat.gradients) and (param.grad == 0).all()


def test_zero_grad_leaves_the_gradients_of_other_optimizers_alone() -> None:
    """One FlatParameters, two optimizers that take turns, as for a generator and its critic."""
    model = network()
    FlatParameters(model)
    first, second = ours("sgd", model[0].parameters()), ours("sgd", model[2].parameters())
    backward(model)
    kept = model[2].weight.grad.clone()
    first.zero_grad()
    assert (model[0].weight.grad == 0).all() and torch.equal(model[2].weight.grad, kept)
    second.zero_grad()
    assert (model[2].weight.grad == 0).all()


def test_an_optimizer_of_some_flat_and_some_other_parameters() -> None:
    model, other = twins(network())
    FlatParameters(model[0])
    optimizer, reference = ours("adam", model.parameters()), ours("adam", other.parameters())
    train(optimizer, model, range(4))
    train(reference, other, range(4))
    assert_equal(model, other)
    optimizer.zero_grad()
    assert model[2].weight.grad is None and (model[0].weight.grad == 0).all()
    backward(model)
    optimizer.zero_grad(set_to_none=False)
    assert (model[2].weight.grad == 0).all()


def test_parameters_without_gradients_are_stepped_with_zeros() -> None:
    """As documented: a flat parameter has a gradient, and zero is not None."""
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    FlatParameters([p, q])
    optimizer = ours("sgd", [p, q], lr=0.1, weight_decay=1.0)
    p.grad.fill_(1.0)
    optimizer.step()
    assert torch.allclose(p, torch.tensor(0.8)) and torch.allclose(q, torch.tensor(0.9))


def _to_channels_last(model: nn.Module) -> None:
    model[0].weight.data = model[0].weight.data.mT.contiguous().mT
    model[0].weight.grad.data = model[0].weight.grad.data.mT.contiguous().mT


MOVES: dict[str, Callable[[nn.Module], Any]] = {
    "float": lambda model: model.float(),
    "bfloat16": lambda model: model.to(torch.bfloat16),
    "strides": _to_channels_last,
}


def _error_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except RuntimeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("move", MOVES)
def test_a_module_that_was_moved_gets_a_clear_error_or_the_right_result(move: str, new: bool) -> None:
    """`module.to(...)` exchanges the memory under parameters and gradients; stale buffers must not be zeroed instead."""
    model, other = twins(network())
    flat = FlatParameters(model)
    optimizer, reference = ours("sgd", model.parameters(), lr=0.5), ours("sgd", other.parameters(), lr=0.5)
    backward(model)
    backward(other)
    MOVES[move](model)
    MOVES[move](other)
    assert any(param.grad.abs().sum() > 0 for param in model.parameters())
    if new:
        flat = FlatParameters(model)
        assert all(within(p, flat.weights) and within(p.grad, flat.gradients) for p in model.parameters())
    for reset in (flat.zero_grad, optimizer.zero_grad):
        error = _error_of(reset)
        assert "make a new FlatParameters" in error or not error
        assert error or all((param.grad == 0).all() for param in model.parameters()), "gradients would add up"
        assert not (error and new)
    for step in range(3):
        model.zero_grad()
        other.zero_grad()
        backward(model, step)
        backward(other, step)
        optimizer.step()
        reference.step()
    assert_equal(model, other)


@pytest.mark.parametrize("way", ["data", "set_"])
@each_optimizer
def test_memory_exchanged_under_a_gradient(name: str, way: str) -> None:
    """The tensor is the same object, its elements lie elsewhere: the step goes there."""
    model, other = twins(network())
    FlatParameters(model)
    optimizer, reference = ours(name, model.parameters()), ours(name, other.parameters())
    train(optimizer, model, range(2))
    train(reference, other, range(2))
    for net, steps in ((model, optimizer), (other, reference)):
        gradient = net[0].weight.grad
        if way == "data":
            gradient.data = gradient.data * 3.0
        else:
            gradient.set_(gradient.data * 3.0)
        steps.step()
    assert_equal(model, other)
