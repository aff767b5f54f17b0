"""An optimizer kept on the CPU in a training loop: schedulers, closures, scalers, steps left out, weights of l1."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from tests.support import cases
from tests.support.offloading import Pair
from tests.support.penalised_cases import some_weights
from tests.support.releasing import closure_of, data

BOTH = pytest.mark.parametrize("free", [False, True])


@BOTH
def test_schedulers(free: bool, recwarn: pytest.WarningsRecorder) -> None:
    pair = Pair(free=free, **cases.STRENGTHS)
    schedulers = [lr_scheduler.OneCycleLR(o, 0.1, total_steps=9) for _, o in pair.both]
    rates = set()
    for step in range(4):
        pair.train(1)
        rates.add(pair.offloaded.param_groups[0]["lr"])
        for scheduler in schedulers:
            scheduler.step()
        for _, optimizer in pair.both:
            optimizer.param_groups[0]["l1"] = 0.1 * step
    assert len(rates) == 4
    assert not [w for w in recwarn if "lr_scheduler" in str(w.message)]


@BOTH
def test_options_that_come_and_go(free: bool) -> None:
    pair = Pair(free=free, **cases.STRENGTHS)
    for change in (
        lambda group: group.update(positive=True),
        lambda group: group.pop("positive"),
        lambda group: group.update(betas=(0.5, 0.9), l1=0.0, mcp=0.2),
        lambda group: group.pop("mcp"),
    ):
        for _, optimizer in pair.both:
            change(optimizer.param_groups[1])
        pair.train(2)


@BOTH
def test_closures(free: bool) -> None:
    pair = Pair(free=free, **cases.STRENGTHS)
    for step in range(3):
        losses = []
        for model, optimizer in pair.both:
            losses.append(optimizer.step(closure_of(model, optimizer, step)))
        assert torch.equal(*losses)
        pair.assert_same(step)


@BOTH
def test_steps_that_are_left_out(free: bool) -> None:
    """Also the first one, which creates no states; the weights on the device are not touched."""
    pair = Pair(free=free, skip_nonfinite=True, **cases.STRENGTHS)
    for step, scale in enumerate((float("inf"), 1.0, float("nan"), 1.0)):
        pair.zero_grad()
        pair.backward(step, scale=scale)
        version = pair.models[1].first.weight._version
        pair.step(step)
        assert (pair.models[1].first.weight._version == version) == (scale != 1.0)
        assert bool(vars(pair.offloaded)["state"]) == (step > 0)


@pytest.mark.parametrize("amp_scaling", [False, True])
def test_grad_scaler(amp_scaling: bool) -> None:
    """A scale that overflows once; its own path, and the one that hands the scale to the step."""
    pair = Pair(amp_scaling=amp_scaling, max_grad_norm=0.1, **cases.STRENGTHS)
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2) for _ in pair.both]
    for step in range(5):
        for (model, optimizer), scaler in zip(pair.both, scalers, strict=True):
            optimizer.zero_grad()
            loss = model(data(step, torch.float32)).square().mean() * (float("inf") if step == 2 else 1.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        pair.assert_same(step)
    assert pair.offloaded.state[pair.models[1].scale]["step"] == 4


def test_weights_of_l1() -> None:
    def groups(model: nn.Module) -> Any:
        return [{"params": [p], "l1_weights": [some_weights(p.detach())]} for p in model.parameters()]

    pair = Pair(free=True, groups=groups, **cases.STRENGTHS)
    pair.train(2)
    for _, optimizer in pair.both:
        optimizer.param_groups[0]["l1_weights"][0].fill_(3.0)
        optimizer.param_groups[2]["l1_weights"] = [some_weights(optimizer.param_groups[2]["params"][0]) * 2]
    pair.train(2)
