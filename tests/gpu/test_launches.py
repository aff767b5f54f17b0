"""A step is one launch, however many tensors and groups there are, and one more where sums are wanted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import regkernels
from tests.support import cases, engine
from tests.support.launches import noted

pytestmark = pytest.mark.gpu


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return noted(monkeypatch)


def groups(device: torch.device, *dtypes: torch.dtype) -> list[dict[str, Any]]:
    found = []
    for index in range(3):
        params = [nn.Parameter(torch.randn(10 + index, device=device).to(dtype)) for _ in range(20) for dtype in dtypes]
        for param in params:
            param.grad = torch.randn_like(param)
        found.append({"params": params, "lr": 0.1 * (index + 1)})
    return found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["update"]),
        ({"stats": True}, ["update", "add_totals"]),
        ({"max_grad_norm": 1.0}, ["reduce", "square_sum", "update"]),
        ({"max_grad_norm": 1.0, "stats": True}, ["reduce", "square_sum", "update", "add_totals"]),
    ],
    ids=lambda value: str(value),
)
@pytest.mark.parametrize("rule", ["sgd", "nesterov", "adam", "amsgrad"])
def test_kernels_of_a_step(
    rule: str, options: dict[str, Any], expected: list[str], device: torch.device, launches: list[str]
) -> None:
    optimizer = engine.make(rule, groups(device, torch.float32), l1=0.1, **options)
    for _ in range(2):
        launches.clear()
        optimizer.step()
        assert launches == expected


def test_types_have_a_launch_each_and_share_that_of_the_sums(device: torch.device, launches: list[str]) -> None:
    optimizer = engine.make("adamw", groups(device, *cases.DTYPES), stats=True)
    optimizer.step()
    assert launches == ["update"] * len(cases.DTYPES) + ["add_totals"]


def test_kernels_of_a_penalty(device: torch.device, launches: list[str]) -> None:
    params = [param for group in groups(device, torch.float32) for param in group["params"]]
    value = regkernels.elastic_net_penalty(params, 0.1, 0.2)
    assert launches == ["reduce", "penalty"]
    launches.clear()
    value.backward()
    assert launches == ["elementwise"]


@pytest.mark.parametrize(("stats", "kernels"), [(False, 1), (True, 2)])
@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_what_the_profiler_sees(rule: str, stats: bool, kernels: int, cuda: torch.device) -> None:
    """Nothing else runs on the device: one copy at most, of a row of numbers that the step count changes."""
    optimizer = engine.make(rule, groups(cuda, torch.float32), l1=0.1, stats=stats)
    for _ in range(3):
        optimizer.step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        optimizer.step()
        torch.cuda.synchronize()
    names = [event.name for event in profiled.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    names = [name for name in names if not name.startswith("Optimizer")]  # annotations
    if not names:
        pytest.skip("the profiler sees no kernels on this machine")
    copies = [name for name in names if name.startswith("Mem")]
    # tests/conftest.py fills fresh memory, so that what is not written is seen.
    fills = [name for name in names if "fill" in name.lower()]
    assert len(names) - len(copies) - len(fills) == kernels, names
    assert len(copies) <= (0 if rule == "sgd" else 1), names
