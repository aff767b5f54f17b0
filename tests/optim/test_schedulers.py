"""Options that change during training: torch's schedulers, tensors as options, scheduled penalties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim import lr_scheduler as schedulers

from regkernels import optim, reference
from tests.support.training import (
    assert_near,
    backward,
    each_optimizer,
    has_momentum,
    network,
    ours,
    theirs,
    train,
    twins,
)

SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "StepLR": lambda o: schedulers.StepLR(o, 3, gamma=0.5),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, T_max=7, eta_min=1e-4),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, T_0=4),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, max_lr=0.1, total_steps=14, cycle_momentum=has_momentum(o)),
    "OneCycleLR, three phases": lambda o: schedulers.OneCycleLR(
        o, max_lr=0.1, total_steps=14, three_phase=True, cycle_momentum=has_momentum(o)
    ),
    "CyclicLR": lambda o: schedulers.CyclicLR(
        o, base_lr=1e-3, max_lr=0.1, step_size_up=3, cycle_momentum=has_momentum(o)
    ),
    "LambdaLR from 0": lambda o: schedulers.LambdaLR(o, lambda step: step / 10),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, 0.1, total_iters=4), schedulers.ExponentialLR(o, 0.8)], milestones=[4]
    ),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(o, 0.5, total_iters=3), schedulers.ExponentialLR(o, 0.9)]
    ),
}


def schedule(optimizer: Optimizer) -> list[Any]:
    """What the schedulers write."""
    return [[group.get(key) for key in ("lr", "momentum", "betas", "initial_lr")] for group in optimizer.param_groups]


@pytest.mark.parametrize("tensor_lr", [False, True])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@each_optimizer
def test_schedulers(name: str, scheduler: str, tensor_lr: bool) -> None:
    model, other = twins(network())
    lr = {"lr": torch.tensor(0.05, dtype=torch.float64)} if tensor_lr else {}
    a = ours(name, model.parameters(), **lr)
    b = theirs(name, other.parameters(), **{key: value.clone() for key, value in lr.items()})
    schedules = SCHEDULERS[scheduler](a), SCHEDULERS[scheduler](b)
    for step in range(12):
        train(a, model, [step], schedules[0].step)
        train(b, other, [step], schedules[1].step)
        assert schedule(a) == schedule(b)
        assert_near(model, other)


@each_optimizer
def test_reduce_on_plateau(name: str) -> None:
    model, other = twins(network())
    rates = []
    for make, net in ((ours, model), (theirs, other)):
        optimizer = make(name, net.parameters())
        scheduler = schedulers.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
        rates.append([])
        for step, metric in enumerate([3.0, 2.0, 2.5, 2.5, 2.5, 1.0, 1.5, 1.5, 1.5]):
            train(optimizer, net, [step])
            scheduler.step(metric)
            rates[-1].append(optimizer.param_groups[0]["lr"])
    assert rates[0] == rates[1] and len(set(rates[0])) > 2
    assert_near(model, other)


@each_optimizer
def test_a_scheduler_is_resumed_with_its_optimizer(name: str) -> None:
    model, other = twins(network())
    a, b = ours(name, model.parameters()), theirs(name, other.parameters())
    s, t = SCHEDULERS["OneCycleLR"](a), SCHEDULERS["OneCycleLR"](b)
    train(a, model, range(5), s.step)
    train(b, other, range(10), t.step)
    resumed = ours(name, model.parameters())
    scheduler = SCHEDULERS["OneCycleLR"](resumed)
    scheduler.load_state_dict(s.state_dict())
    resumed.load_state_dict(a.state_dict())
    train(resumed, model, range(5, 10), scheduler.step)
    assert_near(model, other)


@pytest.mark.parametrize("key", ["lr", "weight_decay"])
@each_optimizer
def test_options_set_in_a_group_take_part_from_the_next_step(name: str, key: str) -> None:
    model, other = twins(network())
    for optimizer, net in ((ours(name, model.parameters()), model), (theirs(name, other.parameters()), other)):
        for step, value in enumerate([0.1, 0.0, 0.3, 0.3, 0.0, 0.05]):
            optimizer.param_groups[0][key] = value
            train(optimizer, net, [step])
    assert_near(model, other)


@pytest.mark.parametrize("key", ["lr", "weight_decay"])
@each_optimizer
def test_options_as_tensors_that_are_changed_in_place(name: str, key: str) -> None:
    """One element, of any shape and type."""
    model, other = twins(network())
    for shape, dtype, net in (((), torch.float64, model), ((1,), torch.float32, other)):
        value = torch.zeros(shape, dtype=dtype)
        optimizer = ours(name, net.parameters(), **{key: value})
        for step, number in enumerate([0.125, 0.0, 0.25, 0.5]):  # exact in both types
            value.fill_(number)
            train(optimizer, net, [step])
        assert optimizer.param_groups[0][key] is value
    assert_near(model, other, 0.0)


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_scheduled_l1(kind: Callable[[float], Any]) -> None:
    """Each step shrinks by the l1 of that step: SGD against the formula."""
    weight = torch.randn(50, dtype=torch.float64)
    p = nn.Parameter(weight.clone())
    optimizer = optim.SGD([p], lr=0.5, l1=0.0)
    for l1 in (0.0, 0.125, 0.5, 0.0, 1.0):
        optimizer.param_groups[0]["l1"] = kind(l1)
        p.grad = torch.randn_like(p)
        z = weight - 0.5 * p.grad
        weight = z.sign() * (z.abs() - 0.5 * l1).clamp(min=0)
        optimizer.step()
        torch.testing.assert_close(p.detach(), weight, rtol=1e-14, atol=1e-15)
    assert 0 < (weight == 0).sum() < 50


def test_a_scheduler_for_l1() -> None:
    """LambdaLR writes "lr" only; whoever wants it for another key copies that key in and out. Plain floats allow it."""
    model = network()
    optimizer = ours("adamw", model.parameters(), l1=0.01)

    class L1Warmup(schedulers.LRScheduler):
        def get_lr(self) -> list[float | Tensor]:
            for group in self.optimizer.param_groups:
                group["l1"] = 0.01 * min(1.0, self.last_epoch / 4)
            return [group["lr"] for group in self.optimizer.param_groups]

    warmup = L1Warmup(optimizer)
    seen = []
    train(optimizer, model, range(6), lambda: seen.append(optimizer.param_groups[0]["l1"]), warmup.step)
    assert seen == [0.0, 0.0025, 0.005, 0.0075, 0.01, 0.01]
    assert any((param == 0).any() for param in model.parameters())


@each_optimizer
def test_maximize_does_not_flip_the_penalties(name: str) -> None:
    """Ascent on f is descent on -f, both with the same penalties."""
    model, other = twins(network())
    options = {"l1": 0.2, "weight_decay": 0.3, "weight_decay_mode": "prox"}
    a = ours(name, model.parameters(), maximize=True, **options)
    b = ours(name, other.parameters(), **options)
    for step in range(5):
        for optimizer, net in ((a, model), (b, other)):
            optimizer.zero_grad()
            backward(net, step)
        for param in model.parameters():
            param.grad.neg_()
        a.step()
        b.step()
    assert_near(model, other, 0.0)
    assert any((param == 0).any() for param in model.parameters())


def test_rules_exchanged_during_training() -> None:
    """momentum and amsgrad are options as well; their buffers are there when they are wanted, and kept in between."""
    model, other = twins(network())
    a, b = ours("sgd", model.parameters()), theirs("sgd", other.parameters())
    for optimizer, net in ((a, model), (b, other)):
        for step, momentum in enumerate([0.0, 0.9, 0.9, 0.0, 0.5]):
            optimizer.param_groups[0]["momentum"] = momentum
            train(optimizer, net, [step])
    assert_near(model, other)
    optimizer = ours("adam", model.parameters())
    train(optimizer, model, range(2))
    optimizer.param_groups[0]["amsgrad"] = True
    train(optimizer, model, range(2, 4))
    for state in optimizer.state.values():
        assert state.keys() == {"step", *reference.RULES["amsgrad"].state_names} and state["step"] == 4
