"""Schedulers next to a schedule of `l1`, and both through a checkpoint. torch's schedulers alone: tests/optim/test_schedulers.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers

import regkernels
from tests.integrations import documented
from tests.integrations.problem import loader, loss_of
from tests.support.training import OPTIMIZERS, assert_equal, has_momentum, network, ours, twins

SCHEDULERS: dict[str, Any] = {
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, max_lr=0.1, total_steps=13, cycle_momentum=has_momentum(o)),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, T_max=12),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, 0.1, total_iters=4), schedulers.CosineAnnealingLR(o, T_max=9)], milestones=[4]
    ),
}


def schedule_l1(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Zero for three steps, then raised to its full value over four."""
    for group in optimizer.param_groups:
        group["l1"] = group["full_l1"] * min(1.0, max(0.0, (step - 3) / 4))


def groups(model: nn.Module) -> list[dict[str, Any]]:
    made = regkernels.param_groups(model, l1=0.05)
    return [{**group, "full_l1": group["l1"]} for group in made]


def train(model: nn.Module, optimizer: Any, scheduler: Any, steps: range) -> None:
    batches = list(loader())
    for step in steps:
        schedule_l1(optimizer, step)
        optimizer.zero_grad()
        loss_of(model, batches[step]).backward()
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_saved_run_continues_with_both_schedules(name: str, scheduler: str) -> None:
    model, other = twins(network(torch.float32))
    a = ours(name, groups(model))
    s = SCHEDULERS[scheduler](a)
    train(model, a, s, range(5))
    torch.save({"model": model.state_dict(), "optimizer": a.state_dict(), "scheduler": s.state_dict()}, "run.pt")
    train(model, a, s, range(5, 12))

    saved = torch.load("run.pt", weights_only=True)
    b = ours(name, regkernels.param_groups(other))
    t = SCHEDULERS[scheduler](b)
    other.load_state_dict(saved["model"])
    b.load_state_dict(saved["optimizer"])
    t.load_state_dict(saved["scheduler"])
    assert [group["full_l1"] for group in b.param_groups] == [0.05, 0.0]
    train(other, b, t, range(5, 12))
    assert_equal(model, other)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_zeros_before_the_penalty_begins(name: str) -> None:
    model = network(torch.float32)
    optimizer = ours(name, groups(model), weight_decay=0.0)
    scheduler = schedulers.ConstantLR(optimizer, 1.0)
    train(model, optimizer, scheduler, range(4))
    matrices = [param for param in model.parameters() if param.dim() == 2]
    assert all((param != 0).all() for param in matrices)
    train(model, optimizer, scheduler, range(4, 12))
    assert any((param == 0).any() for param in matrices)
    assert all((param != 0).all() for param in model.parameters() if param.dim() == 1)


def test_the_documented_schedule_ends_where_it_says() -> None:
    names = documented.run("Schedulers and a schedule for l1")
    assert [group["l1"] for group in names["optimizer"].param_groups] == [names["full_l1"], 0.0]
