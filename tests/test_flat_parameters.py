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
from tests.support.training import (
    assert_equal,
    assert_near,
    each_optimizer,
    network,
    ours,
    train,
    twins,
    weights,
    within,
)

pytestmark = pytest.mark.usefixtures("one_thread")


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
def test_neighbours_in_memory_keep_the_options_of_their_groups(name: str) -> None:
    """Side by side, of one type, and yet no segment may reach from one group into the next."""
    runs = []
    for flat in (False, True):
        torch.manual_seed(0)
        params = [nn.Parameter(torch.randn(16)) for _ in range(6)]
        options = {"l1": 0.1}, {"lr": 0.5}, {"weight_decay": 0.5, "maximize": True}
        groups = [{"params": params[2 * i : 2 * i + 2], **options[i]} for i in range(3)]
        if flat:
            FlatParameters(groups)
            addresses = [param.data_ptr() for param in params]
            assert addresses == [addresses[0] + 64 * i for i in range(6)]
        optimizer = ours(name, groups, stats=True)
        for _ in range(3):
            for param in params:
                gradient = torch.randn(16)
                param.grad = param.grad.copy_(gradient) if flat else gradient
            optimizer.step()
        runs.append(torch.cat([*(param.detach() for param in params), optimizer.stats.nonzeros]))
    assert torch.equal(*runs)


@each_optimizer
def test_clipping_depends_on_the_layout_by_rounding_only(name: str) -> None:
    """The norm is one sum over all that lies side by side, so it may differ in the last bit."""
    model, other = twins(network())
    FlatParameters(model)
    train(ours(name, model.parameters(), max_grad_norm=0.01), model, range(5))
    train(ours(name, other.parameters(), max_grad_norm=0.01), other, range(5))
    assert_near(model, other)


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
