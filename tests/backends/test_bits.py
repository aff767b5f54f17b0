"""The kernels equal the specification in every bit: weights, states and counts, at every instruction set."""

from __future__ import annotations

import pytest
import torch

from regkernels import prox
from tests.support import cases, engine


@pytest.mark.parametrize("case", cases.MATRIX, ids=str)
def test_every_rule_and_mode(case: cases.Case) -> None:
    settings = engine.kernels() if case in cases.FEW else [*engine.kernels(threads=(1,)), engine.kernels()[-1]]
    outcome = engine.assert_kernels_agree(case, cases.model_of_every_size(), settings)
    # What would make the comparison above an empty one.
    ordinary = [weight for weight in engine.values_of(outcome, "weight") if len(weight) in cases.SIZES]
    assert len(ordinary) == len(cases.SIZES) * len(cases.DTYPES)
    assert all(weight.isfinite().all() for weight in ordinary)
    assert (outcome["stats: nonzeros"][0] < sum(map(len, ordinary))).item() == (case.l1_mode != "subgradient")


@pytest.mark.parametrize("precision", cases.PRECISIONS, ids=str)
@pytest.mark.parametrize("case", cases.FEW, ids=str)
def test_every_precision(case: cases.Case, precision: cases.Precision) -> None:
    model = cases.model_of_every_size(dtypes=precision.dtypes)
    outcome = engine.assert_kernels_agree(case, model, engine.kernels(), **precision.options)
    kept = engine.values_of(outcome, precision.param_rounding)
    assert bool(kept) == (precision.param_rounding in ("remainder", "master"))
    assert all(tensor.any() for tensor in kept if len(tensor) > 100)
    narrow = [dtype for name, dtype in ((n, t.dtype) for n, t in outcome.items()) if name.endswith(": exp_avg_sq")]
    assert all(dtype == torch.bfloat16 for dtype in narrow) or precision.state_dtype is None


@pytest.mark.parametrize("precision", cases.PRECISIONS, ids=str)
@pytest.mark.parametrize("dtype", cases.HALF, ids=str)
def test_every_half_precision_number_in_every_precision(dtype: torch.dtype, precision: cases.Precision) -> None:
    if dtype not in precision.dtypes:
        return
    model = cases.model_of_every_pattern(dtype)
    for case in cases.FEW[::2]:
        engine.assert_kernels_agree(case, model, engine.kernels(threads=(1,)), lr=0.3, **precision.options)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(cases.FEW[0], torch.bfloat16), (cases.FEW[1], torch.float16), (cases.FEW[2], torch.float32)],
    ids=str,
)
def test_long_tensors(case: cases.Case, dtype: torch.dtype) -> None:
    weight, *gradients = (torch.randn(cases.LONG).to(dtype) for _ in range(3))
    engine.assert_kernels_agree(case, cases.model_of_one(weight, *gradients))


@pytest.mark.parametrize("lr", [2.0**-11, 0.3])  # with a power of two many results are ties between two neighbours
@pytest.mark.parametrize("case", [cases.Case("sgd", "prox", "prox"), *cases.FEW], ids=str)
@pytest.mark.parametrize("dtype", cases.HALF, ids=str)
def test_every_half_precision_number(dtype: torch.dtype, case: cases.Case, lr: float) -> None:
    model = cases.model_of_every_pattern(dtype)
    outcome = engine.assert_kernels_agree(case, model, engine.kernels(threads=(1,)), lr=lr)
    (weight,) = engine.values_of(outcome, "weight")
    assert weight.isnan().any() and weight.isfinite().sum() > len(weight) // 2


@pytest.mark.parametrize("case", cases.FEW, ids=str)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_every_kind_of_number_in_a_state(dtype: torch.dtype, case: cases.Case) -> None:
    """Also what no step leaves there, such as any NaN."""
    outcome, is_nan = engine.assert_kernels_agree_on_any_state(case, dtype, engine.kernels(threads=(1,)))
    (weight,) = engine.values_of(outcome, "weight")
    assert weight[is_nan].isnan().all()


@pytest.mark.parametrize("dtype", cases.HALF, ids=str)
def test_ties_between_two_half_precision_numbers_go_to_the_even_one(dtype: torch.dtype) -> None:
    """w - g exactly half-way between neighbours: what comes out is known without any implementation."""
    even = cases.every_pattern(dtype)
    magnitude = even.float().abs()
    even = even[(engine.bits(even) % 2 == 0) & (magnitude > 1) & (magnitude < 512) & (magnitude.frexp()[0] != 0.5)]
    outer, inner = ((engine.bits(even) + place).to(torch.int16).view(dtype) for place in (1, -1))
    half_a_place = (outer - even) / 2
    for weight, gradient in (
        (even, half_a_place),
        (even, -half_a_place),
        (outer, half_a_place),
        (inner, -half_a_place),
    ):
        model = cases.model_of_one(weight, gradient)
        for setting in (engine.REFERENCE, *engine.kernels(threads=(1,))):
            outcome = engine.train(
                cases.Case("sgd", "prox", "coupled"), model, setting, lr=1.0, l1=0.0, weight_decay=0.0
            )
            engine.assert_same_bits(engine.values_of(outcome, "weight")[0], even, str(setting))


@pytest.mark.parametrize("case", [cases.Case("sgd", "decoupled", "prox"), *cases.FEW], ids=str)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_a_learning_rate_of_zero_leaves_every_bit_of_a_weight(dtype: torch.dtype, case: cases.Case) -> None:
    """Also the payload of a NaN; the states move on."""
    patterns = cases.every_pattern(dtype)
    gradient = torch.randn(len(patterns)).to(dtype)
    for setting in (engine.REFERENCE, *engine.kernels(threads=(2,))):
        for layout in ("contiguous", "every_other"):
            weight = torch.nn.Parameter(cases.LAYOUTS[layout](patterns))
            optimizer = engine.make(case.rule, [weight], **{**case.options, "lr": 0.0})
            for _ in range(2):
                weight.grad = gradient
                with engine.active(setting):
                    optimizer.step()
            assert torch.equal(engine.bits(weight), engine.bits(patterns)), f"{setting}, {layout}"
            names = [name for name in cases.STATES[cases.RULES[case.rule][0]] if name in optimizer.state[weight]]
            assert names or case.rule == "sgd"
            assert all((optimizer.state[weight][name] != 0).any() for name in names)


@pytest.mark.parametrize("rule", cases.RULES)
def test_without_l1_its_mode_changes_no_bit(rule: str) -> None:
    """A threshold of 0 gives z bit for bit, -0.0 included."""
    model = cases.model_of_every_size(steps=2)
    for setting in (engine.REFERENCE, *engine.kernels(threads=(1,))):
        outcomes = [
            engine.train(cases.Case(rule, mode, "coupled"), model, setting, l1=0.0) for mode in cases.l1_modes(rule)
        ]
        for outcome in outcomes[1:]:
            engine.assert_same(outcome, outcomes[0], setting)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_a_negative_zero_survives_a_step_without_l1_and_no_step_with_it(dtype: torch.dtype) -> None:
    zeros = torch.tensor([-0.0] * 33, dtype=dtype)
    model = cases.model_of_one(zeros, torch.zeros_like(zeros))
    for setting in (engine.REFERENCE, *engine.kernels(threads=(1,))):
        for case in cases.MATRIX:
            for l1 in (0.0, 0.1):
                # Coupled terms turn a gradient of zero into -0.0, and -0.0 - -0.0 is 0.0.
                outcome = engine.train(case, model, setting, l1=l1, weight_decay=0.0, maximize=False)
                (weight,) = engine.values_of(outcome, "weight")
                shrunk = l1 > 0 and case.l1_mode != "subgradient"
                assert not weight.any() and weight.signbit().all().item() == (not shrunk), f"{setting}, {case}, {l1}"


@pytest.mark.parametrize("rule", cases.RULES)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_what_a_threshold_reaches_is_exactly_zero_and_never_negative_zero(rule: str, dtype: torch.dtype) -> None:
    weight = torch.randn(4099).to(dtype)
    model = cases.model_of_one(weight, *(torch.randn(4099).to(dtype) for _ in range(2)))
    for setting in (engine.REFERENCE, *engine.kernels(threads=(1,))):
        mode = cases.l1_modes(rule)[0]
        outcome = engine.train(cases.Case(rule, mode, mode), model, setting, l1=3.0)
        (after,) = engine.values_of(outcome, "weight")
        zero = after == 0
        assert 20 < zero.sum() < len(after) - 20
        assert not after[zero].signbit().any(), setting
        assert outcome["stats: nonzeros"].item() == (~zero).sum()


@pytest.mark.parametrize("threshold", [0.0, 2.0**-7, 0.3])
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_soft_threshold_of_every_number(dtype: torch.dtype, threshold: float) -> None:
    x = cases.every_pattern(dtype)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    exact, t = x.double(), float(torch.tensor(threshold, dtype=compute))
    expected = (exact - exact.clamp(-t, t)).to(compute).to(dtype) if threshold else x
    for setting in (engine.REFERENCE, *engine.kernels(threads=(2,))):
        with engine.active(setting):
            engine.assert_same_bits(prox.soft_threshold(x, threshold), expected, str(setting))
            engine.assert_same_bits(prox.soft_threshold_(x.clone(), threshold), expected, f"{setting}, in place")


# A half-precision result that is too small for its type keeps its sign when it is rounded to zero, as in IEEE 754.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_shrunk_subnormal_is_no_negative_zero(dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    x = torch.full((33,), -limits.tiny * limits.eps, dtype=dtype)
    for setting in (engine.REFERENCE, *engine.kernels()):
        with engine.active(setting):
            shrunk = prox.soft_threshold(x, 0.99 * limits.tiny * limits.eps)
        assert not shrunk.signbit()[shrunk == 0].any(), setting
