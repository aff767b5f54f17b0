"""Penalties on a device: values against float64, gradients bit for bit, and under ``torch.compile``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regkernels
from tests.support import cases, engine, penalties

pytestmark = pytest.mark.gpu

PENALTIES: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "l1": lambda params: regkernels.l1_penalty(params, 0.3),
    "l2": lambda params: regkernels.l2_penalty(params, 0.7),
    "elastic net": lambda params: regkernels.elastic_net_penalty(params, 0.3, 0.7),
}

VALUES: dict[str, Callable[..., Tensor]] = {
    **{name: penalty.ours for name, penalty in penalties.PENALTIES.items()},
    "weighted": lambda params, s: regkernels.l1_penalty(params, s, [torch.full_like(w, 0.3).detach() for w in params]),
}


@pytest.mark.parametrize("size", [0, 1, 33, 4099, 8191, 8192, 8193, 2**20 + 1])
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_values_are_the_sums(dtype: torch.dtype, size: int, setting: engine.Setting) -> None:
    weights = [torch.randn(size).to(dtype), torch.randn(33).to(dtype)]
    absolute = math.fsum(weight.double().abs().sum().item() for weight in weights)
    square = math.fsum(weight.double().square().sum().item() for weight in weights)
    expected = {"l1": 0.3 * absolute, "l2": 0.7 * square, "elastic net": 0.3 * absolute + 0.7 * square}
    placed = [weight.to(setting.device) for weight in weights]
    for name, penalty in PENALTIES.items():
        with engine.active(setting):
            value = penalty(placed)
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) and value.shape == ()
        assert value.device.type == torch.device(setting.device).type
        assert value.item() == pytest.approx(expected[name], rel=1e-12 if dtype == torch.float64 else 1e-6), name


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("name", PENALTIES)
def test_gradients_are_the_reference_s(name: str, layout: str, setting: engine.Setting) -> None:
    shaped = [torch.randn(shape).to(dtype) for dtype in cases.DTYPES for shape in cases.SHAPES]
    values = [*shaped, *(cases.every_pattern(dtype) for dtype in cases.DTYPES)]

    def gradients(where: engine.Setting, place: Callable[[Tensor], Tensor]) -> list[Tensor]:
        params = [nn.Parameter(place(value.to(where.device))) for value in values]
        with engine.active(where):
            (0.7 * PENALTIES[name](params)).backward()
        return [param.grad.cpu() for param in params]

    expected = gradients(engine.REFERENCE, Tensor.clone)
    for index, (got, wanted) in enumerate(zip(gradients(setting, cases.LAYOUTS[layout]), expected, strict=True)):
        engine.assert_same_bits(got, wanted, f"tensor {index}")


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "offset"])
@pytest.mark.parametrize("name", VALUES)
def test_values_beyond_l2_and_their_gradients(name: str, layout: str, setting: engine.Setting) -> None:
    """Values as the reference's sums, gradients its bits."""
    shaped = [torch.randn(shape).to(dtype) for dtype in cases.DTYPES for shape in ((4099,), (17, 3))]
    values = [*shaped, *(cases.every_pattern(dtype).nan_to_num(0.0, 1.0, -1.0) for dtype in cases.DTYPES)]

    def outcome(where: engine.Setting, place: Callable[[Tensor], Tensor]) -> tuple[float, list[Tensor]]:
        params = [nn.Parameter(place(value.to(where.device))) for value in values]
        with engine.active(where):
            value = VALUES[name](params, 0.37)
            (0.7 * value).backward()
        return value.item(), [param.grad.cpu() for param in params]

    (total, gradients), (expected, wanted) = (
        outcome(setting, cases.LAYOUTS[layout]),
        outcome(engine.REFERENCE, Tensor.clone),
    )
    assert total == pytest.approx(expected, rel=1e-12)
    for index, (got, want) in enumerate(zip(gradients, wanted, strict=True)):
        engine.assert_same_bits(got, want, f"tensor {index}")


@pytest.mark.parametrize("dim", [0, 1, "tensor"])
def test_groups(dim: Any, setting: engine.Setting) -> None:
    values = [torch.randn(shape).to(dtype) for dtype in cases.DTYPES for shape in ((70, 40), (3, 9001), (9001, 3))]

    def outcome(where: engine.Setting) -> tuple[float, list[Tensor]]:
        params = [nn.Parameter(value.to(where.device)) for value in values]
        with engine.active(where):
            value = regkernels.group_l1_penalty(params, 0.37, dim)
            (0.7 * value).backward()
        return value.item(), [param.grad.cpu() for param in params]

    (total, gradients), (expected, wanted) = outcome(setting), outcome(engine.REFERENCE)
    assert total == pytest.approx(expected, rel=1e-12)
    for got, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=max(1e-14, 2 * torch.finfo(got.dtype).eps), atol=0)


def test_a_strength_on_the_device_gets_its_gradient(device: torch.device) -> None:
    weight = torch.randn(1000, device=device)
    strength = torch.tensor(0.3, device=device, requires_grad=True)
    regkernels.l1_penalty(weight, strength).backward()
    assert strength.grad is not None
    torch.testing.assert_close(strength.grad, weight.abs().sum(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiles_as_one_graph_and_trains_as_eager_does(mode: str, device: torch.device) -> None:
    data = torch.randn(64, 32, device=device)

    def loss(model: nn.Module, data: Tensor) -> Tensor:
        return model(data).square().mean() + regkernels.elastic_net_penalty(model, 1e-2, 1e-3)

    models = []
    for function in (loss, torch.compile(loss, fullgraph=True, mode=mode)):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(32, 48), nn.Tanh(), nn.Linear(48, 1)).to(device)
        optimizer = regkernels.optim.AdamW(model.parameters(), lr=1e-2, l1=1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            function(model, data).backward()
            optimizer.step()
        models.append(model)
    for got, expected in zip(models[1].parameters(), models[0].parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    torch._dynamo.reset()


def test_a_compiled_strength_is_seen_when_it_changes(device: torch.device) -> None:
    weight = nn.Parameter(torch.randn(1000, device=device))
    strength = torch.tensor(0.1, device=device)
    compiled = torch.compile(lambda w, s: regkernels.l2_penalty(w, s) + w.sum(), fullgraph=True)
    for value in (0.1, 0.7):
        weight.grad = None
        compiled(weight, strength.fill_(value)).backward()
        torch.testing.assert_close(weight.grad, 2 * value * weight.detach() + 1, rtol=1e-5, atol=1e-6)
    torch._dynamo.reset()
