"""Hugging Face Accelerate: prepare, accumulate, clipping, saved states."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import safetensors.torch
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from regkernels import FlatParameters, optim
from tests.integrations.problem import FORMATS, REGULARISED, loader, loss_of, plain_loop, zeros
from tests.support.training import assert_equal, assert_near, each_optimizer, network, ours, theirs, twins, within


def half_life(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)


def accelerated_loop(accelerator: Accelerator, model: nn.Module, optimizer: Any, batches: Any, scheduler: Any) -> None:
    """As the documentation of Accelerate writes it."""
    model, optimizer, batches, scheduler = accelerator.prepare(model, optimizer, batches, scheduler)
    for batch in batches:
        with accelerator.accumulate(model):
            accelerator.backward(loss_of(model, batch))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()


@each_optimizer
def test_prepare_accumulate_clip_and_schedule(name: str) -> None:
    model, other = twins(network(torch.float32))
    a, b = ours(name, model.parameters(), **REGULARISED), ours(name, other.parameters(), **REGULARISED)
    accelerated_loop(Accelerator(cpu=True, gradient_accumulation_steps=2), model, a, loader(), half_life(a))
    plain_loop(other, b, loader(), accumulate=2, clip=0.1, after=half_life(b).step)
    assert_equal(model, other)
    assert zeros(model) > 0


@each_optimizer
def test_torch_optim_without_regularisation(name: str) -> None:
    model, other = twins(network())
    for make, net in ((ours, model), (theirs, other)):
        optimizer = make(name, net.parameters())
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
        accelerated_loop(accelerator, net, optimizer, loader(torch.float64), half_life(optimizer))
    assert_near(model, other)


def test_mixed_precision() -> None:
    model, other = twins(network(torch.float32))
    a, b = ours("adamw", model.parameters(), **REGULARISED), ours("adamw", other.parameters(), **REGULARISED)
    accelerated_loop(Accelerator(cpu=True, mixed_precision="bf16"), model, a, loader(), half_life(a))
    schedule = half_life(b)
    for x, y in loader():
        with torch.autocast("cpu", torch.bfloat16):
            output = other(x)
        nn.functional.mse_loss(output.float(), y).backward()
        nn.utils.clip_grad_norm_(other.parameters(), 0.1)
        b.step()
        schedule.step()
        b.zero_grad()
    assert_equal(model, other)


@each_optimizer
def test_prepare_keeps_float32_states_of_bfloat16_weights(name: str) -> None:
    """It takes the state dict out and loads it again, which torch.optim rounds to the weights' type."""
    model = network(torch.bfloat16)
    optimizer = ours(name, model.parameters(), **REGULARISED)
    plain_loop(model, optimizer, loader(torch.bfloat16))
    before = copy.deepcopy(optimizer.state_dict()["state"])
    prepared = Accelerator(cpu=True).prepare(optimizer)
    after = prepared.state_dict()["state"]
    assert before.keys() == after.keys()
    for index, state in before.items():
        assert state.keys() == after[index].keys()
        for key, value in state.items():
            assert value.dtype == after[index][key].dtype == torch.float32
            assert torch.equal(value, after[index][key])


@pytest.mark.parametrize(("dtype", "param_rounding"), FORMATS, ids=str)
@each_optimizer
def test_saved_state(name: str, dtype: torch.dtype, param_rounding: str) -> None:
    """A run that is loaded in the middle, by another Accelerator into another model, ends with the same weights."""
    rounding = {"param_rounding": param_rounding, "seed": 5}
    batches = list(loader(dtype))
    model, other = network(dtype), network(dtype)
    accelerator = Accelerator(cpu=True)
    net, optimizer = accelerator.prepare(model, ours(name, model.parameters(), **REGULARISED, **rounding))
    plain_loop(net, optimizer, batches[:5])
    accelerator.save_state("checkpoint")
    plain_loop(net, optimizer, batches[5:])

    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    net, optimizer = accelerator.prepare(other, ours(name, other.parameters(), **rounding))
    accelerator.load_state("checkpoint")
    assert optimizer.param_groups[0]["l1"] == REGULARISED["l1"]
    plain_loop(net, optimizer, batches[5:])
    assert_equal(model, other)


def test_flat_parameters() -> None:
    """Saved files hold every parameter, although all lie in one buffer."""
    model, other = twins(network(torch.float32))
    flat = FlatParameters(model)
    for net in (model, other):
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        optimizer = ours("adamw", net.parameters(), **REGULARISED)
        accelerated_loop(accelerator, net, optimizer, loader(), half_life(optimizer))
        accelerator.save_state("flat" if net is model else "plain")
    assert_equal(model, other)
    files = [safetensors.torch.load_file(f"{directory}/model.safetensors") for directory in ("flat", "plain")]
    assert files[0].keys() == files[1].keys() == dict(model.named_parameters()).keys()
    nn.init.zeros_(model[0].weight)
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(model, ours("adamw", model.parameters()))
    accelerator.load_state("flat")
    assert_equal(model, other)
    assert all(within(param, flat.weights) for param in model.parameters())


def test_stats_are_those_of_the_optimizer_inside() -> None:
    model = network(torch.float32)
    wrapped = Accelerator(cpu=True).prepare(optim.AdamW(model.parameters(), lr=0.02, **REGULARISED, stats=True))
    plain_loop(model, wrapped, loader())
    stats = wrapped.optimizer.stats
    assert stats.nonzeros.sum() == sum(int(param.count_nonzero()) for param in model.parameters())
    assert not hasattr(wrapped, "stats"), "docs/frameworks.md says so"
