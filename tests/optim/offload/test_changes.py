"""An optimizer kept on the CPU against the plain one, while weights, parameters and groups are changed: the same bits."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from regkernels import optim
from tests.support import cases, engine
from tests.support.offloading import Pair

BOTH = pytest.mark.parametrize("free", [False, True])


@BOTH
@pytest.mark.parametrize("how", ["copied", "exchanged", "loaded", "data"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_that_somebody_sets(how: str, dtype: torch.dtype, free: bool) -> None:
    pair = Pair(free=free, dtype=dtype, **cases.STRENGTHS)
    for step in range(3):
        pair.train(1)
        value = torch.full((5, 5), 0.5 + step).to(dtype)
        for model, optimizer in pair.both:
            weight = model.first.weight
            if how == "copied":
                with torch.no_grad():
                    weight.copy_(value)
            elif how == "exchanged":
                weight.data = value.clone()
            elif how == "loaded":
                model.load_state_dict({**model.state_dict(), "first.weight": value, "tied.weight": value})
            else:
                weight.data.copy_(value)
                if isinstance(optimizer, optim.CPUOffload):
                    optimizer.read_weights()
    pair.train(2)


def test_a_master_copy_survives_what_changes_nothing() -> None:
    """Its lower bits are kept where the weight is copied again, and the same."""
    pair = Pair(dtype=torch.bfloat16, lr=1e-4)
    for _ in range(10):
        pair.train(1)
        for model, _ in pair.both:
            model.load_state_dict(copy.deepcopy(model.state_dict()))
    state = pair.offloaded.state[pair.models[1].first.weight]
    assert not torch.equal(state["master"], pair.models[1].first.weight.float())


@BOTH
def test_frozen_and_thawed(free: bool) -> None:
    pair = Pair(free=free, **cases.STRENGTHS)
    pair.train(1)
    for frozen in (False, True, False):
        for model, _ in pair.both:
            model.frozen.bias.requires_grad_(not frozen)
            model.first.weight.requires_grad_(frozen)
        pair.train(2)


@BOTH
def test_late_groups(free: bool) -> None:
    pair = Pair(free=free, max_grad_norm=0.1, **cases.STRENGTHS)
    pair.train(1)
    late = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    for param, (_, optimizer) in zip(late, pair.both, strict=True):
        optimizer.add_param_group({"params": iter([param]), "lr": 0.5, "tag": "mine"})
        assert optimizer.param_groups[2]["tag"] == "mine"
    for step in range(3):
        pair.zero_grad()
        pair.backward(step)
        for param in late:
            (param * (step + 1)).square().sum().backward()
        pair.step(step)
    assert not torch.equal(late[1], torch.ones(3))


@BOTH
def test_groups_that_are_gone_and_parameters_that_are_exchanged(free: bool) -> None:
    pair = Pair(free=free, **cases.STRENGTHS)
    pair.train(2)
    for model, optimizer in pair.both:
        params = optimizer.param_groups[1]["params"]
        fresh = nn.Parameter(torch.full((5, 5), 0.1))
        params[[id(p) for p in params].index(id(model.first.weight))] = fresh
        model.first.weight = model.tied.weight = fresh
    pair.train(2)
    gone = pair.offloaded.param_groups[0]["params"]
    for _, optimizer in pair.both:
        del optimizer.param_groups[0]
    pair.train(2)
    pair.backward(2)
    assert any(param.grad is not None for param in gone), "taken by an optimizer that it no longer belongs to"


@BOTH
def test_lazy_and_converted_parameters(free: bool) -> None:
    models = [nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))]
    models.append(copy.deepcopy(models[0]))
    options = {**cases.STRENGTHS, "param_rounding": "master"}
    optimizers = [
        optim.AdamW(models[0].parameters(), **options),
        optim.CPUOffload(models[1].parameters(), free_gradients=free, **options),
    ]
    for step in range(4):
        for model, optimizer in zip(models, optimizers, strict=True):
            torch.manual_seed(step)
            optimizer.zero_grad()
            model(torch.randn(5, 4, dtype=torch.bfloat16 if step > 2 else torch.float32)).square().mean().backward()
            optimizer.step()
            if step == 2:
                model.to(torch.bfloat16)
        engine.assert_same(engine.snapshot(optimizers[1]), engine.snapshot(optimizers[0]), step)


@BOTH
def test_complex_empty_and_strided(free: bool) -> None:
    def params() -> list[nn.Parameter]:
        torch.manual_seed(1)
        base = torch.randn(6, 8)
        shapes = [torch.randn(3, 2, dtype=torch.complex64), torch.randn(0, 4), torch.randn(()), base[:, ::2]]
        shapes.append(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last))
        return [nn.Parameter(value) for value in shapes]

    lists = [params(), params()]
    options: dict[str, Any] = {"lr": 0.1, "max_grad_norm": 0.3, "stats": True}
    optimizers = [
        optim.Adam(lists[0], **options),
        optim.CPUOffload(lists[1], optim.Adam, free_gradients=free, **options),
    ]
    for step in range(3):
        for own, optimizer in zip(lists, optimizers, strict=True):
            optimizer.zero_grad()
            sum((param * (1 + step)).abs().square().sum() for param in own).backward()
            optimizer.step()
        engine.assert_same(engine.snapshot(optimizers[1]), engine.snapshot(optimizers[0]), step)
