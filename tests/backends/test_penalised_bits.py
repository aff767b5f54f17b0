"""With penalties and constraints, too, the kernels equal the specification in every bit."""

from __future__ import annotations

import math

import pytest
import torch

from regkernels import prox, reference
from tests.support import cases, engine
from tests.support.penalised_cases import PENALISED, PENALTIES, STRENGTHS, penalised

FLOAT32 = (torch.float32,)
FEW = [("dampening", "prox"), ("adamw", "prox"), ("rmsprop_both", "coupled")]
each_penalty = pytest.mark.parametrize("penalty", PENALTIES)


@pytest.mark.parametrize(("rule", "penalty"), PENALISED)
def test_every_rule_and_penalty(rule: str, penalty: str) -> None:
    case, options = penalised(rule, penalty)
    model = cases.model_of_every_size(steps=2, dtypes=FLOAT32)
    outcome = engine.assert_kernels_agree(case, model, engine.kernels(threads=(2,)), **options)
    ordinary = [weight for weight in engine.values_of(outcome, "weight") if len(weight) in cases.SIZES]
    assert len(ordinary) == len(cases.SIZES) and all(weight.isfinite().all() for weight in ordinary)


@each_penalty
@pytest.mark.parametrize(("rule", "decay"), FEW)
def test_every_dtype(rule: str, decay: str, penalty: str) -> None:
    case, options = penalised(rule, penalty, decay)
    model = cases.model_of_every_size(steps=2, dtypes=(torch.float64, *cases.HALF))
    engine.assert_kernels_agree(case, model, engine.kernels(threads=(2,)), **options)


@pytest.mark.parametrize("precision", cases.PRECISIONS, ids=str)
@pytest.mark.parametrize("penalty", ["weighted", "cautious", "mcp", "bounded huber"])
def test_every_precision(penalty: str, precision: cases.Precision) -> None:
    case, options = penalised("adam", penalty)
    dtypes = tuple(dtype for dtype in precision.dtypes if dtype in cases.HALF) or precision.dtypes
    weight, *gradients = (torch.randn(1025) for _ in range(3))
    for dtype in dtypes:
        model = cases.model_of_one(weight.to(dtype), *(gradient.to(dtype) for gradient in gradients))
        engine.assert_kernels_agree(case, model, engine.kernels(threads=(1,)), **{**options, **precision.options})


@pytest.mark.parametrize("dtype", cases.HALF, ids=str)
@each_penalty
def test_every_half_precision_number(penalty: str, dtype: torch.dtype) -> None:
    patterns = cases.every_pattern(dtype)
    for rule, lr in (("sgd", 0.3), ("amsgrad", 2.0**-11)):
        case, options = penalised(rule, penalty)
        model = cases.model_of_one(patterns, patterns[torch.randperm(len(patterns))])
        engine.assert_kernels_agree(case, model, engine.kernels(threads=(1,)), lr=lr, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@each_penalty
def test_any_bit_pattern_and_every_size_of_step(penalty: str, dtype: torch.dtype) -> None:
    """Steps from next to nothing to beyond all that is convex, and strengths, too."""
    patterns = cases.every_pattern(dtype)[:8192]
    order = torch.randperm(len(patterns))
    model = cases.model_of_one(
        torch.where(order % 2 == 0, patterns, torch.randn(len(patterns), dtype=dtype)), patterns[order]
    )
    for rule, lr in (("sgd", 1e-30), ("sgd", 1.7), ("adam", 5.0), ("adagrad", 1e30)):
        case, options = penalised(rule, penalty)
        engine.assert_kernels_agree(case, model, engine.kernels(threads=(1,)), lr=lr, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("penalty", sorted(reference.family.FAMILY))
def test_steps_about_as_long_as_a_penalty_is_convex(penalty: str, dtype: torch.dtype) -> None:
    """There an operator chooses between minima, for arguments between narrow bounds."""
    x = torch.linspace(-6.0, 6.0, 4801, dtype=dtype)
    for step in (0.9, 1.0, 1.1, 2.6, 2.8, 3.1):
        with engine.active(engine.REFERENCE):
            expected = getattr(prox, penalty)(x, 1.0, step=step)
        for setting in engine.kernels(threads=(1,)):
            with engine.active(setting):
                engine.assert_same_bits(getattr(prox, penalty)(x, 1.0, step=step), expected, f"{setting}, step {step}")


@each_penalty
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_learning_rate_of_zero_leaves_every_bit_of_a_weight(dtype: torch.dtype, penalty: str) -> None:
    patterns = cases.every_pattern(dtype)[::7]
    for rule in ("sgd", "adam"):
        case, options = penalised(rule, penalty)
        for setting in (engine.REFERENCE, *engine.kernels(threads=(2,))):
            outcome = engine.train(case, cases.model_of_one(patterns, patterns.flip(0)), setting, lr=0.0, **options)
            assert torch.equal(engine.bits(engine.values_of(outcome, "weight")[0]), engine.bits(patterns)), setting


@pytest.mark.parametrize("name", STRENGTHS)
def test_a_strength_of_zero_is_none(name: str) -> None:
    """Also in the kernel that has the penalty: the smaller number is 0 in float32."""
    model = cases.model_of_every_size(steps=2, dtypes=(torch.float32, *cases.HALF))
    case = cases.Case("adam", "prox", "prox")
    for setting in (engine.REFERENCE, *engine.kernels(threads=(1,))):
        outcomes = [
            engine.train(case, model, setting, l1=0.0, **options) for options in ({}, {name: 0.0}, {name: 1e-60})
        ]
        for outcome in outcomes[1:]:
            engine.assert_same(outcome, outcomes[0], setting)


@pytest.mark.parametrize("box", [(-0.0, 1.0), (0.0, math.inf), (-1.0, 0.0), (-1.0, -0.0)])
@pytest.mark.parametrize("positive", [False, True])
def test_no_bound_makes_a_negative_zero(box: tuple[float, float], positive: bool) -> None:
    weight = torch.tensor([0.0, -0.0, 2.0, -2.0] * 9)
    for setting in (engine.REFERENCE, *engine.kernels(threads=(1,))):
        case = cases.Case("sgd", "prox", "coupled")
        outcome = engine.train(case, cases.model_of_one(weight, torch.zeros(36)), setting, box=box, positive=positive)
        (after,) = engine.values_of(outcome, "weight")
        assert (after == 0).any() and not after[after == 0].signbit().any()
