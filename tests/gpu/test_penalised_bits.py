"""On a device, too, steps with penalties equal the specification in every bit."""

from __future__ import annotations

import pytest
import torch

from regkernels import prox
from tests.support import cases, engine, penalised
from tests.support.penalised_cases import PENALTIES, STRENGTHS, of_any_bits
from tests.support.penalised_cases import penalised as case_of

pytestmark = pytest.mark.gpu
each_penalty = pytest.mark.parametrize("penalty", PENALTIES)


@each_penalty
@pytest.mark.parametrize(
    ("rule", "decay"), [("sgd", "prox"), ("nesterov", "coupled"), ("adamw", "prox"), ("rmsprop_both", "prox")]
)
def test_every_penalty(rule: str, decay: str, penalty: str, setting: engine.Setting, interpreted: bool) -> None:
    case, options = case_of(rule, penalty, decay)
    dtypes = (torch.float32, torch.bfloat16) if interpreted else cases.DTYPES
    model = cases.model_of_every_size(steps=2, dtypes=dtypes)
    engine.assert_kernels_agree(case, model, [setting], **options)


@each_penalty
def test_any_bit_pattern_and_every_size_of_step(penalty: str, setting: engine.Setting) -> None:
    for case, model, options in of_any_bits(penalty, 8192):
        engine.assert_kernels_agree(case, model, [setting], **options)


@pytest.mark.parametrize("name", STRENGTHS)
def test_operators(name: str, setting: engine.Setting) -> None:
    x = torch.randn(3, 1025)
    with engine.active(engine.REFERENCE):
        expected = penalised.operator(name, x, 0.4, 1.7, 0.7)
    got = penalised.operator(name, x.to(setting.device), 0.4, 1.7, 0.7)
    engine.assert_same_bits(got.cpu(), expected)
    weights = torch.rand(3, 1025)
    got = prox.weighted_l1(x.to(setting.device), 0.4, weights.to(setting.device))
    engine.assert_same_bits(got.cpu(), prox.weighted_l1(x, 0.4, weights))
