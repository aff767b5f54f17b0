"""Steps of groups: the C++ kernels have the reference's bits, at every instruction set and with any number of threads. Sums over a
group have the same order in both."""

from __future__ import annotations

import math

import pytest
import torch

from regkernels.reference.groups import group_sums
from regkernels.table.grouping import GroupLayout
from tests.support import cases, engine
from tests.support.group_cases import LARGE, LAYOUTS, PENALTIES, WITH_METRIC, Groups, model_of


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("rule", WITH_METRIC)
def test_every_rule_and_penalty(rule: str, penalty: str) -> None:
    for groups in (LAYOUTS[2], LAYOUTS[4], LAYOUTS[7]):
        model = model_of(groups, cases.DTYPES)
        case = cases.Case(rule, "prox", "prox")
        engine.assert_kernels_agree(case, model, engine.kernels(threads=(2,)), **PENALTIES[penalty], **groups.options)


@pytest.mark.parametrize("groups", LAYOUTS, ids=str)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_every_layout_and_precision(groups: Groups, penalty: str) -> None:
    for precision in cases.PRECISIONS:
        options = {**PENALTIES[penalty], **precision.options, **groups.options}
        case = cases.Case("rmsprop_both", "prox", "prox")
        engine.assert_kernels_agree(case, model_of(groups, precision.dtypes), engine.kernels(threads=(1,)), **options)


@pytest.mark.parametrize("groups", LARGE, ids=str)
@pytest.mark.parametrize(("rule", "penalty"), [("adam", "all"), ("dampening", "unit_norm")])
def test_groups_of_several_tasks(groups: Groups, rule: str, penalty: str) -> None:
    """At every instruction set, alone and with a second thread; with tensors that fit into one task beside them."""
    model = model_of(groups, (torch.float32,))
    model.groups[0].append(torch.randn(2 * groups.size, 2 * groups.size))
    for gradients in model.gradients:
        gradients[0].append(torch.randn_like(model.groups[0][1]))
    case = cases.Case(rule, "prox", "prox")
    engine.assert_kernels_agree(case, model, **PENALTIES[penalty], **groups.options)


@pytest.mark.parametrize("groups", [LARGE[0], LARGE[2]], ids=str)
@pytest.mark.parametrize("precision", [cases.PRECISIONS[4], cases.PRECISIONS[5]], ids=str)
def test_groups_of_several_tasks_in_half_precision(groups: Groups, precision: cases.Precision) -> None:
    options = {**PENALTIES["all"], **precision.options, **groups.options}
    case = cases.Case("rmsprop_both", "prox", "prox")
    engine.assert_kernels_agree(case, model_of(groups, (torch.bfloat16,)), engine.kernels(threads=(2,)), **options)


@pytest.mark.parametrize("mode", ["coupled", "decoupled", "cautious"])
def test_every_mode_of_decay_and_gradient(mode: str) -> None:
    for groups in (LAYOUTS[0], LAYOUTS[1]):
        for l1_mode in ("prox", "decoupled", "subgradient"):
            for rule in ("nesterov", "adamw_maximize"):
                options = {"weight_decay_mode": mode, "group_l1": 0.2, **groups.options}
                model = model_of(groups, cases.DTYPES)
                case = cases.Case(rule, l1_mode, None)
                engine.assert_kernels_agree(case, model, engine.kernels(threads=(2,)), **options)


def test_clipping_comes_first() -> None:
    """The norm that it is made of is a sum, of which float32 has the same bits."""
    model = model_of(LAYOUTS[1], (torch.float32, *cases.HALF))
    options = {"group_l1": 0.2, "max_grad_norm": 0.3, **LAYOUTS[1].options}
    engine.assert_kernels_agree(cases.Case("adam", "prox", "prox"), model, engine.kernels(threads=(2,)), **options)


def test_lion_takes_constraints() -> None:
    case = cases.Case("lion", "decoupled", "decoupled")
    model = model_of(LAYOUTS[0], cases.DTYPES)
    engine.assert_kernels_agree(case, model, engine.kernels(threads=(2,)), max_norm=0.7)


# --- sums ---


@pytest.mark.parametrize("layout", [(1, 3, 100_000), (200, 5, 1), (130, 2, 70), (2, 3, 0), (70, 1, 66_000)], ids=str)
def test_group_sums_are_sums(layout: tuple[int, int, int]) -> None:
    x = torch.randn(layout, dtype=torch.float64)
    found = group_sums(x.flatten(), GroupLayout(*layout), x.flatten())
    wanted = torch.tensor([math.fsum(x[:, g].flatten().tolist()) for g in range(layout[1])], dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-10)


def test_the_order_of_sums_is_the_stated_one() -> None:
    """Lanes, pieces and blocks, one addition at a time."""
    outer, groups, inner = 130, 2, 35
    x = torch.randn(outer, groups, inner, dtype=torch.float64)
    rows = -(-outer // 64)
    for g in range(groups):
        total = 0.0
        for block in range(0, outer, rows):
            lanes = [0.0] * 16
            for o in range(block, min(block + rows, outer)):
                for i in range(inner):
                    lanes[i % 16] += x[o, g, i].item()
            of_block = 0.0
            for lane in lanes:
                of_block += lane
            total += of_block
        assert group_sums(x.flatten(), GroupLayout(outer, groups, inner), x.flatten())[g].item() == total
