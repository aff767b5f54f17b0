"""Sums: right to 1e-12, and the same bits for every instruction set and number of threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

import regkernels
from regkernels.optim import Stats
from tests.support import cases, engine

MANY = 2**24

RULES = ("sgd", "momentum", "adam", "amsgrad", "rmsprop_both", "adagrad", "lion")


def exactly(tensors: Sequence[Tensor], power: int) -> float:
    """Sum of |x|**power, rounded once for float32 and narrower (their squares are exact in float64)."""
    return math.fsum(abs(x) ** power for tensor in tensors for x in tensor.detach().double().flatten().tolist())


def magnitudes(size: int, dtype: torch.dtype) -> Tensor:
    """Random signs and exponents, from 1e-20 to 1e20 where the type has them; every seventh element is zero."""
    reach = 20.0 if dtype != torch.float16 else 4.5
    values = torch.sign(torch.randn(size)) * 10.0 ** ((2 * torch.rand(size, dtype=torch.float64) - 1) * reach)
    values[::7] = 0.0
    return values.to(dtype)


def step_once(setting: engine.Setting, groups: list[list[tuple[Tensor, Tensor | None]]], rule: str, lr: float) -> Stats:
    params = [[nn.Parameter(weight.clone()) for weight, _ in group] for group in groups]
    for group, of_group in zip(groups, params, strict=True):
        for (_, gradient), param in zip(group, of_group, strict=True):
            param.grad = gradient
    optimizer = engine.make(rule, [{"params": of_group} for of_group in params], lr=lr, l1=0.1, stats=True)
    with engine.active(setting):
        optimizer.step()
    updated = [[p for p in of_group if p.grad is not None] for of_group in params]
    assert optimizer.stats.nonzeros.tolist() == [sum(int(p.count_nonzero()) for p in group) for group in updated]
    if lr:
        assert optimizer.stats.l1_norm.tolist() == pytest.approx([exactly(g, 1) for g in updated], rel=1e-12, abs=0)
        assert optimizer.stats.squared_norm.tolist() == pytest.approx(
            [exactly(g, 2) for g in updated], rel=1e-12, abs=0
        )
    return optimizer.stats


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_stats_are_those_of_the_updated_weights(dtype: torch.dtype, rule: str) -> None:
    """Per group; a parameter without a gradient is not updated and counts in no sum."""
    sizes = [0, 1, 5, 15, 16, 17, 255, 257, 1025]
    groups: list[list[tuple[Tensor, Tensor | None]]] = [
        [(torch.randn(size).to(dtype), torch.randn(size).to(dtype)) for size in sizes],
        [(magnitudes(2049, dtype), magnitudes(2049, dtype))],
        [(torch.randn(9).to(dtype), None), (torch.randn(9).to(dtype), torch.randn(9).to(dtype))],
        [(torch.randn(9).to(dtype), None)],
    ]
    gradients = [gradient for group in groups for _, gradient in group if gradient is not None]
    for setting in (engine.REFERENCE, *engine.kernels(threads=(1,))):
        stats = step_once(setting, groups, rule, lr=0.0123)
        assert stats.grad_norm.item() == pytest.approx(math.sqrt(exactly(gradients, 2)), rel=1e-12, abs=0)
        assert [stats.l1_norm[3].item(), stats.squared_norm[3].item(), stats.nonzeros[3].item()] == [0.0, 0.0, 0]
        assert [value.dtype for value in stats[:3]] == [torch.float64, torch.float64, torch.int64]
        assert [value.dtype for value in stats[3:]] == [torch.float64, torch.int64]
        assert [tuple(value.shape) for value in stats] == [(4,), (4,), (4,), (), (4,)]


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 4099, cases.CHUNK - 1, cases.CHUNK, 5 * cases.CHUNK + 3])
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_penalties_are_the_sums(dtype: torch.dtype, size: int) -> None:
    weights = [magnitudes(size, dtype), torch.randn(33).to(dtype)]
    expected = [0.3 * exactly(weights, 1), 0.7 * exactly(weights, 2)]
    total_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    rel = 1e-12 if dtype == torch.float64 else 6e-8  # the value is rounded to float32 once
    found = []
    for setting in (engine.REFERENCE, *engine.kernels()):
        with engine.active(setting):
            totals = [regkernels.l1_penalty(weights, 0.3), regkernels.l2_penalty(weights, 0.7)]
            totals.append(regkernels.elastic_net_penalty(weights, 0.3, 0.7))
        assert all(total.dtype == total_dtype and total.shape == () for total in totals)
        for total, value in zip(totals, [*expected, sum(expected)], strict=True):
            limit = torch.finfo(total_dtype).max
            assert total.item() == (pytest.approx(value, rel=rel, abs=0) if value < limit else math.inf), setting
        found.append(torch.stack(totals))
    for totals in found[2:]:
        engine.assert_same_bits(totals, found[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sums_of_many_elements(dtype: torch.dtype) -> None:
    """2**24 elements: float32 could not even count them one by one."""
    weight, gradient = magnitudes(MANY, dtype), magnitudes(MANY, dtype)
    expected = [weight.double().abs().sum().item(), weight.double().square().sum().item()]
    norm = gradient.double().square().sum().sqrt().item()
    found = []
    for setting in engine.kernels():
        stats = step_once(setting, [[(weight, gradient)]], "sgd", lr=0.0)
        assert [stats.l1_norm.item(), stats.squared_norm.item()] == pytest.approx(expected, rel=1e-12, abs=0), setting
        assert stats.grad_norm.item() == pytest.approx(norm, rel=1e-12, abs=0), setting
        with engine.active(setting):
            penalty = regkernels.l1_penalty(weight, 1.0)
        assert penalty.item() == pytest.approx(expected[0], rel=1e-7, abs=0), setting
        found.append(torch.stack([*(value.double().squeeze() for value in stats), penalty.double()]))
    for values in found[1:]:
        engine.assert_same_bits(values, found[0])


@pytest.mark.parametrize("rule", RULES)
def test_sums_do_not_depend_on_instruction_set_or_threads(rule: str) -> None:
    groups: list[list[tuple[Tensor, Tensor | None]]] = [
        [(magnitudes(size, dtype), magnitudes(size, dtype)) for size in (*cases.SIZES, 3 * cases.CHUNK + 5)]
        for dtype in cases.DTYPES
    ]
    found = [step_once(setting, groups, rule, lr=0.0) for setting in engine.kernels(threads=(1, 2, 3))]
    for stats in found[1:]:
        for value, first in zip(stats, found[0], strict=True):
            engine.assert_same_bits(value, first)


@pytest.mark.parametrize("position", [0, 4097, 2 * cases.CHUNK])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_a_single_nan_or_infinity_is_visible(dtype: torch.dtype, value: float, position: int) -> None:
    gradient, weight = torch.ones(2 * cases.CHUNK + 1, dtype=dtype), torch.ones(2 * cases.CHUNK + 1, dtype=dtype)
    gradient[position] = value
    for setting in (engine.REFERENCE, *engine.kernels()):
        stats = step_once(setting, [[(weight, gradient)], [(weight, weight)]], "sgd", lr=0.0)
        norm = stats.grad_norm.item()
        assert math.isnan(norm) if math.isnan(value) else norm == math.inf, setting
        stats = step_once(setting, [[(gradient, weight)], [(weight, weight)]], "sgd", lr=0.0)
        for sums in (stats.l1_norm, stats.squared_norm):
            assert math.isnan(sums[0].item()) if math.isnan(value) else sums[0].item() == math.inf, setting
            assert sums[1].item() == len(weight)
        assert stats.nonzeros.tolist() == [len(weight)] * 2
        with engine.active(setting):
            penalty = regkernels.l2_penalty(gradient, 0.5).item()
        assert math.isnan(penalty) if math.isnan(value) else penalty == math.inf, setting


def test_squares_that_leave_the_range_of_float32_do_not_overflow() -> None:
    large = torch.full((100,), 3e38)
    for setting in (engine.REFERENCE, *engine.kernels()):
        stats = step_once(setting, [[(large, large)]], "sgd", lr=0.0)
        assert stats.grad_norm.item() == pytest.approx(10 * large[0].item(), rel=1e-12)
        assert stats.squared_norm.item() == pytest.approx(100 * large[0].item() ** 2, rel=1e-12)


def test_a_complex_weight_counts_as_two_real_ones() -> None:
    weight, gradient = (torch.randn(5, 7, dtype=torch.complex128) for _ in range(2))
    for setting in (engine.REFERENCE, *engine.kernels(threads=(1,))):
        param = nn.Parameter(weight.t().clone())
        param.grad = gradient.t().clone()
        optimizer = engine.make("sgd", [param], lr=0.0, stats=True)
        with engine.active(setting):
            optimizer.step()
        parts = [torch.view_as_real(weight)]
        assert optimizer.stats.l1_norm.item() == pytest.approx(exactly(parts, 1), rel=1e-12)
        assert optimizer.stats.squared_norm.item() == pytest.approx(exactly(parts, 2), rel=1e-12)
        assert optimizer.stats.nonzeros.item() == 70
        assert optimizer.stats.grad_norm.item() == pytest.approx(torch.linalg.vector_norm(gradient).item(), rel=1e-12)


@pytest.mark.parametrize("place", cases.LAYOUTS.values(), ids=cases.LAYOUTS)
def test_stats_of_parameters_in_every_layout(place: Callable[[Tensor], Tensor]) -> None:
    """Views over which a step goes by way of copies count as the others do, in the same sums."""
    values = [torch.randn(shape, dtype=torch.float64) for shape in cases.SHAPES]
    for setting in (engine.REFERENCE, *engine.kernels(threads=(1,))):
        params = [nn.Parameter(place(value)) for value in values]
        for param, value in zip(params, values, strict=True):
            param.grad = place(value)
        optimizer = engine.make("sgd", params, lr=0.5, stats=True)
        with engine.active(setting):
            optimizer.step()
        assert optimizer.stats.l1_norm.item() == pytest.approx(exactly(params, 1), rel=1e-12)
        assert optimizer.stats.grad_norm.item() == pytest.approx(2 * math.sqrt(exactly(params, 2)), rel=1e-12)


def test_stats_come_and_go_with_what_is_updated() -> None:
    for setting in (engine.REFERENCE, *engine.kernels(threads=(1,))):
        params = [nn.Parameter(torch.tensor([2.0, 0.0, 1.0])), nn.Parameter(torch.ones(4))]
        optimizer = engine.make("sgd", params, lr=0.0, stats=True)
        silent = engine.make("sgd", params, lr=0.0)
        assert optimizer.stats is None
        sums = []
        with engine.active(setting):
            for gradients in ((1.0, 1.0), (None, 2.0), (3.0, None), (None, None)):
                for param, gradient in zip(params, gradients, strict=True):
                    param.grad = None if gradient is None else torch.full_like(param, gradient)
                optimizer.step()
                silent.step()
                assert not hasattr(silent, "stats")
                *found, zero_groups = (value.item() for value in optimizer.stats)
                assert zero_groups == 0
                sums.append(found)
        assert sums[:3] == [[7.0, 9.0, 6, 7**0.5], [4.0, 4.0, 4, 4.0], [3.0, 5.0, 2, 27**0.5]], setting
        assert sums[3] == [0.0, 0.0, 0, 0.0], f"{setting}: the sums of a step that updated nothing"
