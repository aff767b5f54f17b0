"""On a device the kernels equal the specification, run on the CPU, in every bit: weights, states and counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regkernels
from regkernels import prox
from regkernels.backends.triton.kernels import columns
from tests.optim.step.test_step import every_kind_of_group, layered_values
from tests.support import cases, engine, random_numbers

pytestmark = pytest.mark.gpu

CHUNK = columns.CHUNK.value


@pytest.mark.parametrize("case", cases.MATRIX, ids=str)
def test_every_rule_and_mode(case: cases.Case, setting: engine.Setting) -> None:
    outcome = engine.assert_kernels_agree(case, cases.model_of_every_size(), [setting])
    ordinary = [weight for weight in engine.values_of(outcome, "weight") if len(weight) in cases.SIZES]
    assert len(ordinary) == len(cases.SIZES) * len(cases.DTYPES)  # else the comparison was an empty one


@pytest.mark.parametrize("precision", cases.PRECISIONS, ids=str)
@pytest.mark.parametrize("case", cases.FEW, ids=str)
def test_every_precision(case: cases.Case, precision: cases.Precision, setting: engine.Setting) -> None:
    model = cases.model_of_every_size(dtypes=precision.dtypes)
    outcome = engine.assert_kernels_agree(case, model, [setting], **precision.options)
    kept = engine.values_of(outcome, precision.param_rounding)
    assert bool(kept) == (precision.param_rounding in ("remainder", "master"))


@pytest.mark.parametrize("precision", cases.PRECISIONS, ids=str)
@pytest.mark.parametrize("dtype", cases.HALF, ids=str)
def test_every_half_precision_number_in_every_precision(
    dtype: torch.dtype, precision: cases.Precision, setting: engine.Setting
) -> None:
    if dtype not in precision.dtypes:
        return
    model = cases.model_of_every_pattern(dtype)
    engine.assert_kernels_agree(cases.FEW[3], model, [setting], lr=0.3, **precision.options)


@pytest.mark.parametrize("slot", [0, 1, 2])
def test_each_element_gets_the_bits_that_are_documented(slot: int, setting: engine.Setting) -> None:
    """Around the edges of counters, blocks and chunks."""
    places = [place for edge in (0, 512, 1024, CHUNK) for place in range(max(edge - 9, 0), edge + 9)]
    layouts = [torch.empty(size, device=setting.device) for size in (3, CHUNK + 9)]
    found = random_numbers.drawn(setting, layouts, seed=2**32 - 5, step=7, slot=slot)[1]
    expected = [random_numbers.documented(place, 2**32 - 5, 1, 7, slot) for place in places]
    assert found[places].tolist() == expected


@pytest.mark.parametrize("case", [cases.Case("sgd", "prox", "prox"), *cases.FEW], ids=str)
def test_sizes_around_chunks_and_blocks(case: cases.Case, setting: engine.Setting) -> None:
    sizes = [edge + more for edge in (512, 1024, 2048, 4096, CHUNK, 3 * CHUNK) for more in (-1, 0, 1)]
    weights = [torch.randn(size).to(dtype) for dtype in cases.DTYPES for size in sizes]
    gradients = [[torch.randn(weight.shape).to(weight.dtype) for weight in weights] for _ in range(2)]
    engine.assert_kernels_agree(case, cases.Model([weights], [[of_step] for of_step in gradients]), [setting])


@pytest.mark.parametrize("case", cases.FEW, ids=str)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_long_tensors(dtype: torch.dtype, case: cases.Case, setting: engine.Setting, interpreted: bool) -> None:
    size = 2**16 + 1 if interpreted else 2**22 + 1
    engine.assert_kernels_agree(case, cases.model_of_one(*(torch.randn(size).to(dtype) for _ in range(3))), [setting])


@pytest.mark.parametrize("lr", [2.0**-11, 0.3])  # with a power of two many results are ties between two neighbours
@pytest.mark.parametrize("case", [cases.Case("sgd", "prox", "prox"), *cases.FEW], ids=str)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_every_pattern(dtype: torch.dtype, case: cases.Case, lr: float, setting: engine.Setting) -> None:
    """All numbers of the 16-bit types, and random patterns of the others."""
    engine.assert_kernels_agree(case, cases.model_of_every_pattern(dtype), [setting], lr=lr)


@pytest.mark.parametrize("case", cases.FEW, ids=str)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_every_kind_of_number_in_a_state(dtype: torch.dtype, case: cases.Case, setting: engine.Setting) -> None:
    engine.assert_kernels_agree_on_any_state(case, dtype, [setting])


@pytest.mark.parametrize("case", [cases.Case("sgd", "decoupled", "prox"), *cases.FEW], ids=str)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_a_learning_rate_of_zero_leaves_every_bit_of_a_weight(
    dtype: torch.dtype, case: cases.Case, setting: engine.Setting
) -> None:
    patterns = cases.every_pattern(dtype)
    model = cases.model_of_one(patterns, *(torch.randn(len(patterns)).to(dtype) for _ in range(2)))
    (weight,) = engine.values_of(engine.train(case, model, setting, lr=0.0), "weight")
    assert torch.equal(engine.bits(weight), engine.bits(patterns))


def train(
    groups: list[dict[str, Any]], rule: str, steps: list[list[Tensor]], setting: engine.Setting, **layout: Any
) -> engine.Outcome:
    """Groups with options of their own; ``flat``: in a `FlatParameters`."""
    moved = [
        {**group, "params": [nn.Parameter(value.to(setting.device, copy=True)) for value in group["params"]]}
        for group in groups
    ]
    if layout.get("flat"):
        regkernels.FlatParameters(moved)
    optimizer = engine.make(rule, moved, stats=True)
    params = [param for group in moved for param in group["params"]]
    with engine.active(setting):
        for gradients in steps:
            for param, gradient in zip(params, gradients, strict=True):
                if param.grad is None:
                    param.grad = gradient.to(setting.device)
                else:
                    param.grad.copy_(gradient)
            optimizer.step()
    return engine.on_cpu(engine.snapshot(optimizer))


@pytest.mark.parametrize("rule", cases.RULES)
def test_groups_of_every_mode_type_and_sign_in_one_optimizer(rule: str, setting: engine.Setting) -> None:
    kinds = [(dtype, size) for dtype in cases.DTYPES for size in (1, 17, 100)]
    groups = [
        {**options, "params": [torch.randn(size).to(dtype) for dtype, size in kinds]}
        for options in every_kind_of_group(rule)
    ]
    values = [value for group in groups for value in group["params"]]
    steps = [[torch.randn(value.shape).to(value.dtype) for value in values] for _ in range(2)]
    expected = train(groups, rule, [[g.clone() for g in of_step] for of_step in steps], engine.REFERENCE)
    engine.assert_same(train(groups, rule, steps, setting), expected)


@pytest.mark.parametrize("case", [cases.Case("sgd", "prox", "decoupled"), *cases.FEW], ids=str)
def test_flat_parameters_change_no_bit(case: cases.Case, setting: engine.Setting) -> None:
    values = layered_values()
    groups = [{**case.options, "params": values[::2]}, {**case.options, "params": values[1::2], "lr": 0.05}]
    ordered = values[::2] + values[1::2]
    steps = [[torch.randn(value.shape).to(value.dtype) for value in ordered] for _ in range(3)]
    expected = train(groups, case.rule, [[g.clone() for g in of_step] for of_step in steps], engine.REFERENCE)
    engine.assert_same(train(groups, case.rule, steps, setting, flat=True), expected)


@pytest.mark.parametrize("of_gradient", cases.LAYOUTS)
@pytest.mark.parametrize("of_param", cases.LAYOUTS)
def test_layouts_of_parameters_and_gradients(of_param: str, of_gradient: str, setting: engine.Setting) -> None:
    """Also what lies one element past an allocation, where no load is aligned."""
    kinds = [(dtype, shape) for dtype in cases.DTYPES for shape in cases.SHAPES]
    for case in [cases.Case("sgd", "prox", "coupled"), *cases.FEW[1:3]]:
        values, *steps = ([torch.randn(shape).to(dtype) for dtype, shape in kinds] for _ in range(3))
        model = cases.Model([values], [[gradients] for gradients in steps])
        expected = engine.train(case, model, engine.REFERENCE)
        params = [nn.Parameter(cases.LAYOUTS[of_param](value.to(setting.device))) for value in values]
        around = [cases.surroundings(param) for param in params]
        addresses = [(param.data_ptr(), param.stride()) for param in params]
        optimizer = engine.make(case.rule, params, stats=True, **case.options)
        with engine.active(setting):
            for gradients in steps:
                for param, gradient in zip(params, gradients, strict=True):
                    param.grad = cases.LAYOUTS[of_gradient](gradient.to(setting.device))
                before = [cases.surroundings(param.grad, everything=True) for param in params]
                optimizer.step()
                for param, kept in zip(params, before, strict=True):
                    engine.assert_same_bits(cases.surroundings(param.grad, everything=True), kept, "a gradient")
        engine.assert_same(engine.on_cpu(engine.snapshot(optimizer)), expected, str(case))
        for param, kept in zip(params, around, strict=True):
            engine.assert_same_bits(cases.surroundings(param), kept, "beside a parameter")
        assert addresses == [(param.data_ptr(), param.stride()) for param in params]


@pytest.mark.parametrize("threshold", [0.0, 2.0**-7, 0.3])
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_soft_threshold_of_every_number(dtype: torch.dtype, threshold: float, setting: engine.Setting) -> None:
    x = cases.every_pattern(dtype)
    with engine.active(engine.REFERENCE):
        expected = prox.soft_threshold(x, threshold)
    for layout in ("contiguous", "offset", "every_other"):
        placed = cases.LAYOUTS[layout](x.to(setting.device))
        around = cases.surroundings(placed)
        with engine.active(setting):
            engine.assert_same_bits(prox.soft_threshold(placed, threshold).cpu(), expected, layout)
            engine.assert_same_bits(prox.soft_threshold_(placed, threshold).cpu(), expected, f"{layout}, in place")
        engine.assert_same_bits(cases.surroundings(placed), around, layout)
