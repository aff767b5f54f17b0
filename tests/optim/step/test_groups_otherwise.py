"""Penalties and constraints by groups, stepped in other ways: flat, released, compiled, in several param groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regkernels as rk
from tests.optim.step.test_groups import SETTINGS
from tests.support import engine
from tests.support.group_cases import Groups, shrink

# --- with everything else ---


def trained(weights: list[Tensor], use: Any, setting: engine.Setting, **options: Any) -> list[Tensor]:
    """After three backward passes; ``use`` makes the step of each."""
    torch.manual_seed(1)
    params = [nn.Parameter(weight.clone()) for weight in weights]
    data = [torch.randn_like(weight) for weight in weights]
    with engine.active(setting):
        step = use(params, {"lr": 0.1, "group_l1": 0.05, **options})
        for _ in range(3):
            step(lambda: sum(((param - x) ** 2).sum() for param, x in zip(params, data, strict=True)) / 2)
    return [param.detach().clone() for param in params]


def plainly(params: list[nn.Parameter], options: dict[str, Any]) -> Any:
    optimizer = rk.optim.Adam(params, **options)

    def step(loss: Any) -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def flat(params: list[nn.Parameter], options: dict[str, Any]) -> Any:
    kept = rk.FlatParameters(params)
    step = plainly(params, options)
    return lambda loss: (step(loss), kept)


def released(params: list[nn.Parameter], options: dict[str, Any]) -> Any:
    release = rk.optim.step_in_backward(rk.optim.Adam(params, **options), bucket_bytes=300)
    return lambda loss: (loss().backward(), release)


def compiled(params: list[nn.Parameter], options: dict[str, Any]) -> Any:
    optimizer = rk.optim.Adam(params, **options)
    compiled_step = torch.compile(optimizer.step, backend="eager")

    def step(loss: Any) -> None:
        optimizer.zero_grad()
        loss().backward()
        compiled_step()

    return step


@pytest.mark.parametrize("use", [flat, released, compiled])
def test_other_ways_to_step_give_the_same(use: Any) -> None:
    weights = [torch.randn(6, 8), torch.randn(4, 8), torch.randn(5), torch.randn(3, 2, 3, 3)]
    for setting in SETTINGS:
        for got, wanted in zip(trained(weights, use, setting), trained(weights, plainly, setting), strict=True):
            engine.assert_same_bits(got, wanted, str(setting))


def test_each_param_group_has_its_own_groups() -> None:
    weights = [torch.randn(6, 8) for _ in range(3)]
    gradients = [torch.randn(6, 8) for _ in range(3)]
    own: list[dict[str, Any]] = [
        {"group_l1": 0.5},
        {"group_l1": 0.5, "group_dim": 1, "group_size": 4},
        {"max_norm": 0.1, "group_dim": "tensor"},
    ]
    for setting in SETTINGS:
        params = [nn.Parameter(weight.clone()) for weight in weights]
        with engine.active(setting):
            optimizer = rk.optim.SGD([{"params": [p], **o} for p, o in zip(params, own, strict=True)], lr=1.0)
            for param, gradient in zip(params, gradients, strict=True):
                param.grad = gradient
            optimizer.step()
        for param, weight, gradient, options in zip(params, weights, gradients, own, strict=True):
            groups = Groups((6, 8), options.get("group_dim", 0), options.get("group_size", 1))
            right = (weight - gradient).double()
            for mask in groups.masks():
                right[mask] = shrink(right[mask], 1.0, options)
            torch.testing.assert_close(param.detach().double(), right, rtol=1e-5, atol=1e-6)
