"""Elementwise penalties through the Triton kernels, bit for bit as the reference."""

from __future__ import annotations

import pytest
import torch

from tests.interpreted.test_matrix import TRITON, model
from tests.support import cases, engine
from tests.support.penalised_cases import PENALTIES, of_any_bits, penalised

pytestmark = pytest.mark.interpreted

RULES = ("sgd", "nesterov", "adam", "rmsprop_both")
each_penalty = pytest.mark.parametrize("penalty", PENALTIES)


@each_penalty
@pytest.mark.parametrize("rule", RULES)
def test_every_penalty(rule: str, penalty: str) -> None:
    """With a metric per element and without, with a proximal decay and a coupled one."""
    case, options = penalised(rule, penalty, "coupled" if rule == "rmsprop_both" else "prox")
    dtypes = (torch.float64, torch.float32) if rule in ("sgd", "adam") else (torch.float32,)
    engine.assert_kernels_agree(case, model((3, 257, 1025), dtypes=dtypes), [TRITON], **options)


@each_penalty
def test_any_bit_pattern_and_every_size_of_step(penalty: str) -> None:
    for case, of_one, options in of_any_bits(penalty, 2048):
        engine.assert_kernels_agree(case, of_one, [TRITON], **options)


@each_penalty
def test_half_precision_and_its_rounding(penalty: str) -> None:
    case, options = penalised("adam", penalty)
    weight, *gradients = (torch.randn(1025).bfloat16() for _ in range(3))
    for precision in (cases.PRECISIONS[0], cases.PRECISIONS[5], cases.PRECISIONS[2]):
        engine.assert_kernels_agree(
            case, cases.model_of_one(weight, *gradients), [TRITON], **{**options, **precision.options}
        )


@pytest.mark.parametrize("penalty", ["weighted", "mcp"])
def test_misaligned_tensors_and_chunks(penalty: str) -> None:
    case, options = penalised("adam", penalty)
    engine.assert_kernels_agree(case, model((8191, 8193), dtypes=(torch.float32,)), [TRITON], **options)
    engine.assert_kernels_agree(case, model((1025, 3), 3, dtypes=(torch.float32,)), [TRITON], **options)
