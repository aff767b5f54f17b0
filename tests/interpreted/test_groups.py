"""Steps of groups through the Triton kernels, interpreted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import regkernels as rk
from tests.support import cases, engine
from tests.support.group_cases import LAYOUTS, PENALTIES, WITH_METRIC, Groups, assert_device_agrees

pytestmark = pytest.mark.interpreted

TRITON = engine.Setting("triton")


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("groups", LAYOUTS, ids=str)
def test_every_layout_and_penalty(groups: Groups, penalty: str) -> None:
    assert_device_agrees("adam", penalty, groups, (torch.float64, torch.float32), TRITON)


@pytest.mark.parametrize("rule", WITH_METRIC)
def test_every_rule(rule: str) -> None:
    for groups in (LAYOUTS[1], LAYOUTS[4]):
        assert_device_agrees(rule, "all", groups, (torch.float64, torch.float32), TRITON)


@pytest.mark.parametrize("precision", cases.PRECISIONS, ids=str)
def test_every_precision(precision: cases.Precision) -> None:
    dtypes = tuple(dtype for dtype in precision.dtypes if dtype != torch.float64)
    for groups in (LAYOUTS[2], LAYOUTS[3], LAYOUTS[7]):
        assert_device_agrees("rmsprop_both", "all", groups, dtypes, TRITON, **precision.options)


ALIGNED = (Groups((5, 1032)), Groups((300, 40)), Groups((40, 16), 1), Groups((2, 5000)), Groups((2, 2, 72), 1))
"""Of which 16 bytes are moved at a time: several rows to a program and several programs to the rows, columns, and longer rows."""

SEVERAL = (Groups((2100, 3), 1), Groups((2100, 8), 1), Groups((2, 66_000)))
"""Groups that several programs share: columns, those of which 16 bytes are moved at a time, rows."""


@pytest.mark.parametrize("groups", [*ALIGNED, *SEVERAL], ids=str)
def test_groups_of_any_length(groups: Groups) -> None:
    assert_device_agrees("adam", "all", groups, (torch.float32,), TRITON)


@pytest.mark.parametrize("groups", [*ALIGNED, SEVERAL[1]], ids=str)
def test_groups_of_any_length_without_second_moments(groups: Groups) -> None:
    assert_device_agrees("dampening", "unit_norm", groups, (torch.float32,), TRITON)


def test_groups_may_move_to_other_addresses() -> None:
    """Where 16 bytes can no longer be moved at a time, and back: the layout is made anew."""
    memory = torch.randn(4 * 64 + 1)
    model = [nn.Parameter(torch.randn(4, 64)) for _ in range(2)]
    model[1].data.copy_(model[0].data)
    optimizers = [rk.optim.SGD([param], lr=0.1, group_l1=0.3) for param in model]
    for place in (0, 1, 0):
        for param, setting, optimizer in zip(model, (TRITON, engine.REFERENCE), optimizers, strict=True):
            param.grad = memory[place : place + 256].view(4, 64)
            with engine.active(setting):
                optimizer.step()
        engine.assert_same_bits(*(param.detach() for param in model))


def test_a_step_that_is_left_out_on_the_device() -> None:
    """Its sums are those of what is there."""
    for groups in (LAYOUTS[0], LAYOUTS[1], ALIGNED[1], SEVERAL[0]):
        weight = groups.tensor(torch.float32)
        weight[:, 1] = weight[1] = 0
        gradient = torch.full_like(weight, float("nan"))
        model = cases.model_of_one(weight, torch.zeros_like(weight), gradient)
        options = {"group_l1": 0.1, "skip_nonfinite": True, "l1": 0.0, **groups.options}
        case = cases.Case("adam", "prox", "prox")
        got, expected = (engine.train(case, model, setting, **options) for setting in (TRITON, engine.REFERENCE))
        (weight_of_got,), (weight_of_expected,) = (engine.values_of(outcome, "weight") for outcome in (got, expected))
        engine.assert_same_bits(weight_of_got, weight_of_expected)
        assert torch.equal(got["stats: zero_groups"], expected["stats: zero_groups"])
        assert int(got["stats: zero_groups"]) > 0


def test_norms_of_all_gradients() -> None:
    """Of more elements than there are groups, and of groups beside what is in none."""
    shapes = [(3, 9000), (200, 3), (5000,)]
    weights, gradients = ([torch.randn(shape) for shape in shapes] for _ in range(2))
    for setting in (TRITON, engine.REFERENCE):
        params = [nn.Parameter(weight.clone()) for weight in weights]
        own = [{"group_l1": 0.1}, {"group_l1": 0.1, "group_dim": 1}, {"l1": 0.1}]
        with engine.active(setting):
            listed = [{"params": [param], **options} for param, options in zip(params, own, strict=True)]
            optimizer = rk.optim.SGD(listed, lr=1e-3, max_grad_norm=0.1, stats=True)
            for _ in range(2):
                for param, gradient in zip(params, gradients, strict=True):
                    param.grad = gradient.clone()
                optimizer.step()
        norm = torch.cat([gradient.flatten() for gradient in gradients]).double().norm()
        assert optimizer.stats is not None
        torch.testing.assert_close(optimizer.stats.grad_norm, norm, rtol=1e-12, atol=0)
        if setting == TRITON:
            got = [param.detach() for param in params]
    for param, triton_param in zip(params, got, strict=True):
        engine.assert_same_bits(triton_param, param.detach())


@pytest.mark.parametrize("dtype", [torch.float32, *cases.HALF], ids=str)
def test_a_learning_rate_of_zero_leaves_every_bit_of_a_weight(dtype: torch.dtype) -> None:
    patterns = cases.every_pattern(dtype)[::77][:800].view(8, 100)
    model = cases.model_of_one(patterns, patterns.flip(0))
    case = cases.Case("adam", "prox", "prox")
    for dim in (0, 1):
        outcome = engine.train(case, model, TRITON, lr=0.0, group_l1=0.3, max_norm=0.1, group_dim=dim)
        assert torch.equal(engine.bits(engine.values_of(outcome, "weight")[0]), engine.bits(patterns))
