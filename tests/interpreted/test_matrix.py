"""Every rule, mode and dtype through the Triton kernels, bit for bit as the reference."""

from __future__ import annotations

import itertools

import pytest
import torch

from regkernels.backends.triton.kernels.columns import CHUNK
from tests.support import cases, covering, engine

pytestmark = pytest.mark.interpreted

TRITON = engine.Setting("triton")

BLOCKS = (256, 512, 1024)
"""Elements that a program takes at a time, of float64, float32 and half-precision weights."""

SMALL = (0, 1, 3, 17, 255, 256, 257, 513, 1025)
DEALT = covering.dealt(cases.MATRIX, [SMALL[first::3] for first in range(3)])
"""Sizes for each case: one of every kind. All rules and all modes have met all of them."""

LARGE = (CHUNK.value - 1, CHUNK.value, CHUNK.value + 1, 2 * CHUNK.value + 300)


def model(sizes: tuple[int, ...], offset: int = 0, dtypes: tuple[torch.dtype, ...] = cases.DTYPES) -> cases.Model:
    """Two groups of all dtypes; ``offset`` elements lie between where an allocation begins and the weight."""

    def tensors() -> list[torch.Tensor]:
        return [torch.randn(size + offset).to(dtype)[offset:] for dtype in dtypes for size in sizes]

    special = [cases.special_pairs(dtype, 1) for dtype in dtypes]
    return cases.Model(
        [tensors(), [weight for weight, _ in special]], [[tensors(), [g for _, g in special]] for _ in range(3)]
    )


@pytest.mark.parametrize(("case", "sizes"), list(zip(cases.MATRIX, DEALT, strict=True)), ids=map(str, cases.MATRIX))
def test_every_rule_and_mode(case: cases.Case, sizes: tuple[int, ...]) -> None:
    outcome = engine.assert_kernels_agree(case, model(sizes), [TRITON])
    ordinary = [weight for weight in engine.values_of(outcome, "weight") if len(weight) in sizes]
    assert len(ordinary) == len(sizes) * len(cases.DTYPES)
    assert all(weight.isfinite().all() for weight in ordinary)


def test_every_rule_and_mode_meets_every_size() -> None:
    for factor in range(len(cases.Case._fields)):
        met = {(case[factor], size) for case, sizes in zip(cases.MATRIX, DEALT, strict=True) for size in sizes}
        assert met == set(itertools.product({case[factor] for case in cases.MATRIX}, SMALL))


@pytest.mark.parametrize("precision", cases.PRECISIONS, ids=str)
@pytest.mark.parametrize("case", cases.FEW, ids=str)
def test_every_precision(case: cases.Case, precision: cases.Precision) -> None:
    sizes = model((1, 17, 1025), dtypes=precision.dtypes)
    engine.assert_kernels_agree(case, sizes, [TRITON], **precision.options)


@pytest.mark.parametrize("precision", cases.PRECISIONS, ids=str)
@pytest.mark.parametrize("dtype", cases.HALF, ids=str)
def test_every_half_precision_number_in_every_precision(dtype: torch.dtype, precision: cases.Precision) -> None:
    if dtype not in precision.dtypes:
        return
    every = cases.model_of_every_pattern(dtype)
    engine.assert_kernels_agree(cases.FEW[3], every, [TRITON], lr=0.3, **precision.options)


@pytest.mark.parametrize("case", cases.FEW, ids=str)
def test_sizes_around_a_chunk(case: cases.Case) -> None:
    engine.assert_kernels_agree(case, model(LARGE), [TRITON])


@pytest.mark.parametrize("offset", [1, 3, 4])
@pytest.mark.parametrize("case", cases.FEW, ids=str)
def test_misaligned_tensors(case: cases.Case, offset: int) -> None:
    """Weights, gradients and states are aligned each on its own: what is not is taken element by element."""
    engine.assert_kernels_agree(case, model((1025, 3), offset), [TRITON])


@pytest.mark.parametrize("case", [cases.Case("sgd", "prox", "prox"), *cases.FEW], ids=str)
@pytest.mark.parametrize("dtype", cases.HALF, ids=str)
def test_every_half_precision_number(dtype: torch.dtype, case: cases.Case) -> None:
    engine.assert_kernels_agree(case, cases.model_of_every_pattern(dtype), [TRITON], lr=0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_any_bit_pattern(dtype: torch.dtype) -> None:
    patterns = cases.every_pattern(dtype)[:8192]
    gradients = [patterns[torch.randperm(len(patterns))] for _ in range(2)]
    for case in cases.FEW:
        engine.assert_kernels_agree(case, cases.model_of_one(patterns, *gradients), [TRITON])
