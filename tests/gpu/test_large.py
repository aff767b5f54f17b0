"""More elements than 32 bits can count, and more tensors than one would launch kernels for."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn

import regkernels
from regkernels import prox
from tests.support import cases, engine

pytestmark = pytest.mark.gpu

WEIGHTS, GRADIENTS = 255, 253
"""Periods of the values below; no common factor, so that every weight meets every gradient."""


def period(length: int, dtype: torch.dtype) -> Tensor:
    """Numbers that every type holds, in sums that float64 holds."""
    return ((torch.arange(length) * 101 % length - length // 2) / 64).to(dtype)


def repeated(values: Tensor, size: int) -> Tensor:
    return values.repeat(size // len(values) + 1)[:size]


def total(values: Tensor, size: int, power: int) -> float:
    """Sum of |x|**power over ``size`` elements that repeat ``values``: exact."""
    terms = values.double().abs() ** power
    full, rest = divmod(size, len(values))
    return full * terms.sum().item() + terms[:rest].sum().item()


@pytest.fixture
def size(device: torch.device, interpreted: bool) -> int:
    """2**31 + 3, where there is memory for it."""
    if interpreted:
        return 2**14 + 3
    gc.collect()
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < 60 * 2**30:
        pytest.skip("needs 60 GiB of free memory on the device")
    return 2**31 + 3


def windows(size: int) -> list[slice]:
    """The start, the surroundings of ``size - 3``, which is a power of two, and the end."""
    reach = min(100_000, size // 4)
    return [slice(0, reach), slice(size - 3 - reach, size)]


@pytest.mark.parametrize("case", [cases.Case("sgd", "prox", "prox"), cases.Case("adamw", "prox", "prox")], ids=str)
@pytest.mark.parametrize("dtype", cases.HALF, ids=str)
def test_a_step(dtype: torch.dtype, case: cases.Case, size: int, device: torch.device) -> None:
    w, g = period(WEIGHTS, dtype), period(GRADIENTS, dtype)
    param = nn.Parameter(repeated(w.to(device), size))
    param.grad = repeated(g.to(device), size)
    expected = []
    for window in windows(size):
        parts = (values.cpu().clone() for values in (param.detach()[window], param.grad[window]))
        (outcome,) = engine.values_of(engine.train(case, cases.model_of_one(*parts), engine.REFERENCE), "weight")
        expected.append(outcome)
    optimizer = engine.make(case.rule, [param], stats=True, **case.options)
    optimizer.step()
    for window, wanted in zip(windows(size), expected, strict=True):
        engine.assert_same_bits(param.detach()[window].cpu(), wanted, f"{window}")
    stats = optimizer.stats
    assert stats.grad_norm.item() == pytest.approx(total(g, size, 2) ** 0.5, rel=1e-12)
    absolute, square, nonzeros = 0.0, 0.0, 0
    for part in param.detach().split(2**27):
        absolute += part.double().abs().sum().item()
        square += part.double().square().sum().item()
        nonzeros += part.count_nonzero().item()
    assert stats.nonzeros.item() == nonzeros and 0 < nonzeros < size
    assert [stats.l1_norm.item(), stats.squared_norm.item()] == pytest.approx([absolute, square], rel=1e-12)


@pytest.mark.parametrize("dtype", cases.HALF, ids=str)
def test_a_penalty_and_a_soft_threshold(dtype: torch.dtype, size: int, device: torch.device) -> None:
    w = period(WEIGHTS, dtype)
    param = nn.Parameter(repeated(w.to(device), size))
    value = regkernels.elastic_net_penalty(param, 0.3, 0.7)
    assert value.item() == pytest.approx(0.3 * total(w, size, 1) + 0.7 * total(w, size, 2), rel=1e-6)
    value.backward()
    shrunk = prox.soft_threshold(param.detach(), 0.5)
    for window in windows(size):
        part = nn.Parameter(param.detach()[window].cpu().clone())
        with engine.active(engine.REFERENCE):
            regkernels.elastic_net_penalty(part, 0.3, 0.7).backward()
            wanted = prox.soft_threshold(part.detach(), 0.5)
        engine.assert_same_bits(param.grad[window].cpu(), part.grad, f"gradient at {window}")
        engine.assert_same_bits(shrunk[window].cpu(), wanted, f"threshold at {window}")


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("case", [cases.Case("nesterov", "prox", "coupled"), cases.FEW[3]], ids=str)
def test_five_thousand_tensors(case: cases.Case, flat: bool, setting: engine.Setting, interpreted: bool) -> None:
    sizes = [1 + 37 * index % 401 for index in range(100 if interpreted else 5000)]
    weights = [torch.randn(size) for size in sizes]
    gradients = [[torch.randn(size) for size in sizes] for _ in range(2)]
    model = cases.Model([weights[::2], weights[1::2]], [[of_step[::2], of_step[1::2]] for of_step in gradients])
    if not flat:
        engine.assert_kernels_agree(case, model, [setting])
        return
    expected = engine.train(case, model, engine.REFERENCE)
    groups = [[nn.Parameter(weight.to(setting.device)) for weight in of_group] for of_group in model.groups]
    optimizer = engine.make(case.rule, [{"params": params} for params in groups], stats=True, **case.options)
    regkernels.FlatParameters(optimizer.param_groups)
    with engine.active(setting):
        for of_step in model.gradients:
            for params, of_group in zip(groups, of_step, strict=True):
                for param, gradient in zip(params, of_group, strict=True):
                    param.grad.copy_(gradient)
            optimizer.step()
    engine.assert_same(engine.on_cpu(engine.snapshot(optimizer)), expected)
