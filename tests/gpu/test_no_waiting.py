"""The host never waits for the device: torch raises where it would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import regkernels
from regkernels import prox
from tests.gpu.training import RULES, Training

pytestmark = pytest.mark.gpu


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


OPTIONS: dict[str, dict[str, Any]] = {
    "floats": {},
    "tensors": {"tensors": True},
    "capturable": {"tensors": True, "capturable": True},
    "max_grad_norm": {"max_grad_norm": 0.5},
    "stats": {"stats": True},
    "everything": {"tensors": True, "max_grad_norm": 0.5, "stats": True},
}


def started(rule: str, what: str, device: torch.device) -> Training:
    options = dict(OPTIONS[what])
    if rule in ("sgd", "nesterov"):
        options.pop("capturable", None)
    return Training(rule, device, **options)


@pytest.mark.parametrize("what", OPTIONS)
@pytest.mark.parametrize("rule", RULES)
def test_steps(rule: str, what: str, device: torch.device) -> None:
    """With gradients that are somewhere else in every step, strengths that change, and sums that are read."""
    training = started(rule, what, device)
    for _ in range(2):
        training.whole()
    kept = []
    with no_waiting(device):
        for lr in (0.01, 0.02, 0.03):
            kept.append([param.grad for param in training.params])
            training.set(lr=lr, l1=lr)
            training.whole()
            stats = getattr(training.optimizer, "stats", None)
            if stats is not None:
                kept.append([stats.l1_norm + stats.squared_norm, stats.nonzeros + 1, stats.grad_norm + 1])
    assert kept[0][-1].data_ptr() != training.params[-1].grad.data_ptr()


@pytest.mark.parametrize("what", OPTIONS)
@pytest.mark.parametrize("rule", RULES)
def test_first_steps(rule: str, what: str, device: torch.device) -> None:
    training = started(rule, what, device)
    training.backward()
    with no_waiting(device):
        training.optimizer.step()


def test_flat_parameters(device: torch.device) -> None:
    training = Training("adamw", device, stats=True, max_grad_norm=1.0)
    regkernels.FlatParameters(training.params)
    for _ in range(2):
        training.whole()
    with no_waiting(device):
        for _ in range(3):
            training.whole()


def strength(device: torch.device) -> torch.Tensor:
    return torch.tensor(0.1, device=device, requires_grad=True)


PENALTIES: dict[str, Callable[[Any, Any], torch.Tensor]] = {
    "l1": lambda params, s: regkernels.l1_penalty(params, 0.1),
    "elastic net": lambda params, s: regkernels.elastic_net_penalty(params, 0.1, 0.2),
    "tensor strengths": lambda params, s: regkernels.elastic_net_penalty(params, s, s),
    "soft_threshold": lambda params, s: sum(prox.soft_threshold(param, 0.1).float().sum() for param in params),
}


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_forward_and_backward(name: str, device: torch.device) -> None:
    training, on_device = Training("sgd", device), strength(device)
    PENALTIES[name](training.params, on_device).backward()
    with no_waiting(device):
        for _ in range(2):
            for param in training.params:
                param.grad = None
            PENALTIES[name](training.params, on_device).backward()
    assert all(param.grad is not None for param in training.params)


def test_soft_threshold_in_place(device: torch.device) -> None:
    x = torch.randn(1000, device=device)
    prox.soft_threshold_(x, 0.1)
    with no_waiting(device):
        prox.soft_threshold_(x, 0.1)
        prox.soft_threshold_(x[::2], 0.1)
