"""Steps of groups on a device, compared with the specification on the CPU."""

from __future__ import annotations

import pytest
import torch

from tests.support import cases, engine
from tests.support.group_cases import LARGE, LAYOUTS, PENALTIES, WITH_METRIC, Groups, assert_device_agrees

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("groups", LAYOUTS, ids=str)
def test_every_layout_and_penalty(groups: Groups, penalty: str, setting: engine.Setting) -> None:
    assert_device_agrees("adam", penalty, groups, cases.DTYPES, setting)


@pytest.mark.parametrize("rule", WITH_METRIC)
def test_every_rule(rule: str, setting: engine.Setting) -> None:
    for groups in (LAYOUTS[1], LAYOUTS[4]):
        assert_device_agrees(rule, "all", groups, cases.DTYPES, setting)


@pytest.mark.parametrize("precision", cases.PRECISIONS, ids=str)
def test_every_precision(precision: cases.Precision, setting: engine.Setting) -> None:
    dtypes = tuple(dtype for dtype in precision.dtypes if dtype != torch.float64)
    for groups in (LAYOUTS[2], LAYOUTS[3], LAYOUTS[7]):
        assert_device_agrees("rmsprop_both", "all", groups, dtypes, setting, **precision.options)


@pytest.mark.parametrize("groups", LARGE, ids=str)
def test_large_groups(groups: Groups, setting: engine.Setting) -> None:
    assert_device_agrees("adam", "all", groups, (torch.float32,), setting)


def test_equal_input_gives_equal_bits(setting: engine.Setting) -> None:
    """Sums of float64 norms, too, whatever runs beside them."""
    weight, gradient = torch.randn(300, 500, dtype=torch.float64), torch.randn(300, 500, dtype=torch.float64)
    model = cases.model_of_one(weight, gradient)
    for dim in (0, 1, "tensor"):
        options = {"group_l1": 0.3, "max_norm": 5.0, "group_dim": dim}
        case = cases.Case("adam", "prox", "prox")
        outcomes = [engine.train(case, model, setting, **options) for _ in range(3)]
        for outcome in outcomes[1:]:
            for name, tensor in outcomes[0].items():
                engine.assert_same_bits(outcome[name], tensor, name)
