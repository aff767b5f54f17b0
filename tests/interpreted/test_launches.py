"""How many kernels a step launches, and what a launch that fails leaves behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import regkernels
from regkernels import optim
from regkernels.backends.triton import launch as launching
from tests.support.launches import noted

pytestmark = pytest.mark.interpreted


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return noted(monkeypatch)


def parameters(*dtypes: torch.dtype) -> list[nn.Parameter]:
    params = [nn.Parameter(torch.randn(size).to(dtype)) for dtype in dtypes for size in (1, 300, 0, 7)]
    for param in params:
        param.grad = torch.randn_like(param)
    return params


@pytest.mark.parametrize(
    ("dtypes", "stats", "expected"),
    [
        ([torch.float32], False, ["update"]),
        ([torch.float32], True, ["update", "add_totals"]),
        ([torch.float32, torch.bfloat16], True, ["update", "update", "add_totals"]),
    ],
)
def test_one_launch_per_rule_and_dtype(
    dtypes: list[torch.dtype], stats: bool, expected: list[str], launches: list[str]
) -> None:
    params = parameters(*dtypes)
    groups = [{"params": params[::2], "l1": 0.1}, {"params": params[1::2], "lr": 0.3}]
    optimizer = optim.AdamW(groups, stats=stats)
    for _ in range(2):
        launches.clear()
        optimizer.step()
        assert launches == expected


def test_clipping_adds_a_reduction(launches: list[str]) -> None:
    optimizer = optim.SGD(parameters(torch.float32), max_grad_norm=1.0)
    optimizer.step()
    assert launches == ["reduce", "square_sum", "update"]


def test_a_penalty_is_two_launches_and_its_gradient_one(launches: list[str]) -> None:
    penalty = regkernels.elastic_net_penalty(parameters(torch.float32), 0.1, 0.2)
    assert launches == ["reduce", "penalty"]
    launches.clear()
    penalty.backward()
    assert launches == ["elementwise"]


def test_a_launch_that_fails_leaves_the_step_count(monkeypatch: pytest.MonkeyPatch) -> None:
    params = parameters(torch.float32)
    optimizer = optim.Adam(params, stats=True)
    optimizer.step()
    before = [param.detach().clone() for param in params]
    stats = optimizer.stats

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: out of resources")

    with monkeypatch.context() as patch:
        patch.setattr(launching, "launch", fail)
        with pytest.raises(RuntimeError, match="out of resources"):
            optimizer.step()
    assert all(torch.equal(param, value) for param, value in zip(params, before, strict=True))
    assert all(optimizer.state[param]["step"] == 1 for param in params)
    assert optimizer.stats is not None and stats is not None
    assert torch.equal(optimizer.stats.l1_norm, stats.l1_norm)
    optimizer.step()
    assert all(optimizer.state[param]["step"] == 2 for param in params)


def test_nothing_is_uploaded_that_has_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    from regkernels.backends.triton import tables

    uploads: list[int] = []
    upload = tables.upload
    monkeypatch.setattr(tables, "upload", lambda host, device: uploads.append(host.size) or upload(host, device))
    params = parameters(torch.float32)
    optimizer = optim.SGD(params, lr=0.1, momentum=0.9)
    optimizer.step()
    assert len(uploads) == 4, "segments, owners, ranges, hyper-parameters"
    for change, expected in (
        (lambda: None, 0),
        (lambda: optimizer.param_groups[0].update(lr=0.2), 1),
        (lambda: setattr(params[1], "grad", params[1].grad.clone()), 1),
        (lambda: None, 0),
    ):
        uploads.clear()
        kept = params[1].grad  # so that its memory is not handed out again
        change()
        optimizer.step()
        assert len(uploads) == expected
        del kept
