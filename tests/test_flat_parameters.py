"""`FlatParameters`: the memory moves, the parameters stay, and training goes on as it would have."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regkernels
from regkernels import FlatParameters
from tests.training import OPTIMIZERS, assert_equal, assert_near, backward, network, ours, train, twins, weights

each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Model(nn.Module):
    """Odd sizes, 0-dim and empty tensors, tied and frozen weights, mixed types, channels_last."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 3)
        self.conv = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        self.head = nn.Linear(3, 11)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.empty = nn.Parameter(torch.zeros(0, 4))
        self.low = nn.Linear(7, 3).to(torch.bfloat16)
        self.wide = nn.Linear(3, 3).double()
        self.frozen = nn.Linear(3, 3).requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) * self.scale
        x = self.conv(x.mT.reshape(1, 3, 3, -1).to(memory_format=torch.channels_last)).mean((2, 3))
        x = self.low(x.repeat(1, 2)[:, :7].to(torch.bfloat16)).double()
        return self.head(self.frozen(self.wide(x).float())) + self.empty.sum()


def train_tokens(optimizer: torch.optim.Optimizer, model: nn.Module, steps: Iterable[int], **zero: Any) -> None:
    for step in steps:
        optimizer.zero_grad(**zero)
        model((torch.arange(9) * (step + 2) % 11).view(1, 9)).square().mean().backward()
        optimizer.step()


def within(tensor: Tensor, buffers: list[Tensor]) -> bool:
    begins = tensor.data_ptr()
    ends = begins + tensor.numel() * tensor.element_size()
    return any(b.data_ptr() <= begins and ends <= b.data_ptr() + b.nbytes for b in buffers) or tensor.numel() == 0


def test_what_moves_and_what_stays() -> None:
    model = Model()
    params = dict(model.named_parameters())
    before = {name: param.detach().clone() for name, param in params.items()}
    strides = {name: param.stride() for name, param in params.items()}
    frozen = model.frozen.weight.data_ptr()
    model.scale.grad = torch.tensor(7.0)
    flat = FlatParameters(model)
    assert dict(model.named_parameters()).keys() == params.keys()
    for name, param in model.named_parameters():
        assert param is params[name] and isinstance(param, nn.Parameter) and param.is_leaf
        assert torch.equal(param, before[name]) and param.stride() == strides[name]
        if param.requires_grad:
            assert within(param, flat.weights) and within(param.grad, flat.gradients)
            assert param.grad.stride() == param.stride() and param.grad.dtype == param.dtype
            assert (param.grad == (7 if name == "scale" else 0)).all()
    assert model.frozen.weight.data_ptr() == frozen and model.frozen.weight.grad is None
    assert model.head.weight is model.embed.weight
    sizes = {torch.float32: 33 + 11 + 135 + 5 + 1 + 0, torch.bfloat16: 24, torch.float64: 12}
    assert {buffer.dtype: len(buffer) for buffer in flat.weights} == sizes
    assert {buffer.dtype: len(buffer) for buffer in flat.gradients} == sizes
    assert repr(flat).startswith("FlatParameters(10 parameters: ") and "185 x float32 on cpu" in repr(flat)
    # Every element has exactly one owner.
    for buffer in [*flat.weights, *flat.gradients]:
        buffer.zero_()
    for param in model.parameters():
        if param.requires_grad:
            param.detach().add_(1)
            param.grad.add_(1)
    assert all((buffer == 1).all() for buffer in [*flat.weights, *flat.gradients])


@pytest.mark.parametrize("when", ["before", "after", "between steps", "twice"])
@each_optimizer
def test_training_is_bit_for_bit_the_same(name: str, when: str) -> None:
    model, other = twins(Model())
    options = {"lr": 0.02, "stats": True}

    def groups(model: nn.Module) -> list[dict[str, Any]]:
        """Neighbours in memory with different rows of options."""
        divided = regkernels.param_groups(model, l1=1e-3, weight_decay=0.01)
        return [divided[0], {**divided[1], "params": divided[1]["params"][::2]}, {"params": divided[1]["params"][1::2]}]

    if when in ("before", "twice"):
        FlatParameters(model)
    optimizer = ours(name, groups(model), **options)
    if when in ("after", "twice"):
        FlatParameters(model)
    train_tokens(optimizer, model, range(2))
    if when == "between steps":
        FlatParameters(optimizer.param_groups)
    train_tokens(optimizer, model, range(2, 6))
    flat = FlatParameters.owner(model.scale)
    for param in (param for group in optimizer.param_groups for param in group["params"]):
        assert within(param, flat.weights) and within(param.grad, flat.gradients)
    reference = ours(name, groups(other), **options)
    train_tokens(reference, other, range(6), set_to_none=False)
    assert_equal(model, other)
    assert torch.equal(model.frozen.weight, other.frozen.weight)
    for a, b in zip(optimizer.stats, reference.stats, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


@each_optimizer
def test_clipping_depends_on_the_layout_by_rounding_only(name: str) -> None:
    """The norm is one sum over all that lies side by side, so it may differ in the last bit."""
    model, other = twins(network())
    FlatParameters(model)
    train(ours(name, model.parameters(), max_grad_norm=0.01), model, range(5))
    train(ours(name, other.parameters(), max_grad_norm=0.01), other, range(5))
    assert_near(model, other)


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


def test_placement() -> None:
    """By group where groups are given; otherwise matrices first, which is how `param_groups` divides them."""
    model = network(torch.float32)
    FlatParameters(model)
    order = sorted(model.parameters(), key=lambda param: param.data_ptr())
    assert [param.dim() for param in order] == [2, 2, 1, 1]
    groups = [{"params": [model[2].bias, model[0].weight]}, {"params": model[2].weight}, {"params": model[0].bias}]
    FlatParameters(groups)
    order = sorted(model.parameters(), key=lambda param: param.data_ptr())
    assert {id(order[0]), id(order[1])} == {id(model[2].bias), id(model[0].weight)}
    assert order[2] is model[2].weight and order[3] is model[0].bias


@pytest.mark.parametrize(
    "given",
    [lambda m: m, lambda m: m.parameters(), lambda m: m.named_parameters(), lambda m: regkernels.param_groups(m)],
    ids=["module", "parameters", "named parameters", "groups"],
)
def test_what_may_be_given(given: Callable[[nn.Module], Any]) -> None:
    model = network()
    flat = FlatParameters(given(model))
    assert sum(map(len, flat.weights)) == sum(param.numel() for param in model.parameters())
    assert all(FlatParameters.owner(param) is flat for param in model.parameters())


def test_it_is_freed_with_its_model() -> None:
    model = network()
    flat = FlatParameters(model)
    optimizer = ours("adam", model.parameters())
    train(optimizer, model, range(2))
    alive = [weakref.ref(flat), weakref.ref(flat.weights[0]), weakref.ref(flat.gradients[0]), weakref.ref(model)]
    del flat
    assert FlatParameters.owner(model[0].weight) is alive[0](), "kept as long as its parameters are"
    train(optimizer, model, range(2, 4))
    del model, optimizer
    gc.collect()
    assert [reference() for reference in alive] == [None] * 4


@each_optimizer
def test_a_copy_is_independent(name: str) -> None:
    model = network()
    FlatParameters(model)
    optimizer = ours(name, model.parameters())
    train(optimizer, model, range(2))
    other, copied = copy.deepcopy((model, optimizer))
    train(optimizer, model, range(2, 5))
    kept = weights(model)
    train(copied, other, range(2, 5))
    assert_equal(model, other)
    train(copied, other, range(5, 7))
    assert all(torch.equal(param, old) for param, old in zip(model.parameters(), kept, strict=True))
