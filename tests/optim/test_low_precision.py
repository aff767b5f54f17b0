"""Weights and states in fewer bits: nothing is lost beside a remainder or a master copy, and chance loses nothing on average."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from regkernels import optim, reference
from tests.support import cases, engine
from tests.support.rounding import BF16, F32, KEEPING, KERNEL, SETTINGS, stepped


def wide(weight: Tensor, kept: Tensor) -> Tensor:
    """The float32 weight that a parameter and its state stand for."""
    return reference.join(weight, kept) if kept.dtype == torch.int16 else kept


# --- what would be lost ---


@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "remainder", "master"])
def test_a_thousand_small_shrinks(rounding: str) -> None:
    shrink, steps, size = 1e-3, 1000, 4096
    param = nn.Parameter(torch.ones(size, dtype=BF16))
    twin = nn.Parameter(torch.ones(1))
    a = optim.SGD([param], lr=1.0, l1=shrink, param_rounding=rounding, seed=3)
    b = optim.SGD([twin], lr=1.0, l1=shrink)

    def take(count: int) -> None:
        for _ in range(count):
            stepped(KERNEL, a, torch.zeros(size))
            stepped(KERNEL, b, torch.zeros(1))

    take(steps // 2)
    if rounding == "nearest":
        assert (param == 1).all()
    elif rounding == "stochastic":
        assert len(param.unique()) > 10
        error = stats.sem(param.double().detach().numpy())
        assert abs(param.double().mean().item() - 0.5) < 4 * error < 0.01
    else:
        engine.assert_same_bits(wide(param.detach(), a.state[param][rounding]), twin.detach().expand(size), rounding)
        assert 0.4 < twin.item() < 0.6
    take(steps // 2)
    if rounding in ("remainder", "master"):
        engine.assert_same_bits(wide(param.detach(), a.state[param][rounding]), twin.detach().expand(size), rounding)
        take(1)
        assert not param.any() and not twin.any()
    elif rounding == "stochastic":
        assert param.mean() < 0.05
        take(steps // 2)
        assert not param.any(), "zero is where an element stays"


# --- nothing is lost ---


def assert_a_float32_run(case: cases.Case, model: cases.Model, setting: engine.Setting, **options: Any) -> None:
    """Bit for bit, in weights and states, with the same gradients."""
    as_float = cases.Model(
        [[weight.float() for weight in group] for group in model.groups],
        [[[gradient.float() for gradient in group] for group in step] for step in model.gradients],
    )
    expected = engine.train(case, as_float, setting, **options)
    for rounding, dtype in KEEPING:
        if dtype != model.groups[0][0].dtype:
            continue
        found = engine.train(case, model, setting, **options, param_rounding=rounding)
        kept = iter(engine.values_of(found, rounding))
        for name, value in expected.items():
            if name.startswith("stats"):
                continue
            narrow = found[name.replace("torch.float32", str(dtype))]
            if name.endswith(": weight"):
                stored, narrow = narrow, wide(narrow, next(kept))
                assert_nearest(stored, narrow)
            engine.assert_same_bits(narrow, value, f"{setting}, {case}, {rounding}: {name}")
        assert not list(kept)


def assert_nearest(stored: Tensor, exact: Tensor) -> None:
    """``stored`` is what torch rounds to, or as near on the other side of a tie."""
    rounded = exact.to(stored.dtype)
    other = engine.bits(stored) != engine.bits(rounded)
    other &= ~(stored.isnan() & rounded.isnan())
    assert stored.dtype == BF16 or not other.any()
    low = exact.view(torch.int32) & 0xFFFF
    assert (low[other] == 0x8000).all(), "only ties may go the other way"


@pytest.mark.parametrize("case", cases.MATRIX, ids=str)
def test_every_rule_and_mode_as_in_float32(case: cases.Case) -> None:
    for dtype in cases.HALF:
        special, *gradients = [cases.special_pairs(dtype, step) for step in range(4)]
        weights = [torch.randn(1025).to(dtype), special[0]]
        steps = [[[torch.randn(1025).to(dtype), gradient]] for _, gradient in gradients]
        assert_a_float32_run(case, cases.Model([weights], steps), KERNEL)


@pytest.mark.parametrize("lr", [2.0**-11, 0.3])  # with a power of two many results are ties between two neighbours
@pytest.mark.parametrize("case", [cases.Case("sgd", "prox", "prox"), *cases.FEW], ids=str)
@pytest.mark.parametrize("dtype", cases.HALF, ids=str)
def test_every_half_precision_number_as_in_float32(dtype: torch.dtype, case: cases.Case, lr: float) -> None:
    model = cases.model_of_every_pattern(dtype)
    for setting in (engine.REFERENCE, KERNEL):
        assert_a_float32_run(case, model, setting, lr=lr)


def test_a_float32_is_split_into_its_nearest_bfloat16_and_the_rest() -> None:
    """Against float64: random bits, and for each bfloat16 what lies half-way to the next and on both sides of that."""
    below = cases.every_pattern(BF16).view(torch.int16).to(torch.int32) << 16
    middles = [(below + offset).view(F32) for offset in (0x7FFF, 0x8000, 0x8001)]
    for x in (cases.every_pattern(F32), *middles):
        weight, rest = reference.split(x)
        engine.assert_same_bits(reference.join(weight, rest), x)
        finite = x.abs() < 3.38e38
        distance = (weight.double() - x.double()).abs()[finite]
        for place in (-1, 1):
            other = (weight.view(torch.int16) + place).view(BF16).double()
            assert not ((other - x.double()).abs()[finite] < distance).any()
        assert weight[x.isnan()].isnan().all()


# --- by chance ---


def neighbours(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The numbers of ``dtype`` around each float64, from the list of all; both are x where x is one of them."""
    every = cases.every_pattern(dtype).double()
    every = every[~every.isnan()].unique()
    above = torch.searchsorted(every, x)
    exact = every[above] == x
    return torch.where(exact, x, every[(above - 1).clamp(min=0)]), every[above]


def differences(dtype: torch.dtype, magnitude: float) -> tuple[Tensor, Tensor]:
    """Weights, and gradients that are smaller: w - g is a number between two of ``dtype``."""
    weights = (magnitude * torch.randn(96)).to(dtype)
    gradients = (0.3 * magnitude * torch.randn(96)).to(dtype)
    return weights, gradients


@pytest.mark.parametrize("magnitude", [1.0, 300.0, 1e-6, 5e-7])  # float16 is subnormal below 6e-5
@pytest.mark.parametrize("dtype", cases.HALF, ids=str)
def test_a_weight_goes_to_one_of_its_neighbours_and_the_mean_is_exact(dtype: torch.dtype, magnitude: float) -> None:
    repeats = 4096
    weights, gradients = differences(dtype, magnitude)
    rate = 2.0**-6 if dtype == BF16 or magnitude > 1e-4 else 2.0**-3
    exact = (weights.double() - rate * gradients.double()).float().double()  # w - lr * g, rounded once
    lower, upper = neighbours(exact, dtype)
    for setting in (engine.REFERENCE, KERNEL):
        param = nn.Parameter(weights.repeat_interleave(repeats))
        optimizer = optim.SGD([param], lr=rate, param_rounding="stochastic", seed=11)
        stepped(setting, optimizer, gradients.repeat_interleave(repeats))
        assert_fair(param.detach().double().view(-1, repeats), exact, lower, upper)


def test_a_state_goes_to_one_of_its_neighbours_and_the_mean_is_exact() -> None:
    repeats = 4096
    values = torch.randn(96) * torch.tensor([1e-30, 1e-6, 1.0, 1e20]).repeat(24)
    lower, upper = neighbours(values.double(), BF16)
    for setting in (engine.REFERENCE, KERNEL):
        param = nn.Parameter(torch.zeros(96 * repeats))
        optimizer = optim.SGD([param], lr=0.1, momentum=0.9, state_dtype=BF16, seed=11)
        stepped(setting, optimizer, values.repeat_interleave(repeats))
        found = optimizer.state[param]["momentum_buffer"]
        assert found.dtype == BF16
        assert_fair(found.double().view(-1, repeats), values.double(), lower, upper)


def assert_fair(found: Tensor, exact: Tensor, lower: Tensor, upper: Tensor) -> None:
    """``found``: (numbers, repeats). How often each went up is binomial; all together are tested by chi-square."""
    lower, upper, exact = lower[:, None], upper[:, None], exact[:, None]
    assert ((found == lower) | (found == upper)).all()
    between = (lower != upper).flatten()
    assert between.sum() > 30
    chance = ((exact - lower) / (upper - lower))[between, 0]
    repeats = found.shape[1]
    up = (found == upper)[between].sum(1).double()
    common = (chance * repeats > 10) & ((1 - chance) * repeats > 10)
    square = (up - repeats * chance) ** 2 / (repeats * chance * (1 - chance))
    assert common.sum() > 20
    assert 1e-4 < stats.chi2.sf(square[common].sum().item(), int(common.sum())) < 1 - 1e-4
    # And without a drift that single numbers would not show.
    total = (up - repeats * chance).sum() / (repeats * chance * (1 - chance)).sum().sqrt()
    assert abs(total) < 3.5


@pytest.mark.parametrize("dtype", cases.HALF, ids=str)
def test_numbers_of_the_type_are_left_alone(dtype: torch.dtype) -> None:
    """Zeros of both signs, subnormals, infinities; NaN stays NaN; what is too large is the largest or infinite."""
    patterns = cases.every_pattern(dtype)
    for setting in SETTINGS:
        param = nn.Parameter(patterns.clone())
        optimizer = optim.SGD([param], lr=1.0, param_rounding="stochastic")
        for _ in range(3):
            stepped(setting, optimizer, torch.zeros(len(patterns)))
        engine.assert_same_bits(param.detach(), patterns, str(setting))
    largest = torch.finfo(dtype).max
    for setting in SETTINGS:
        param = nn.Parameter(torch.tensor([largest, -largest], dtype=dtype).repeat(512))
        optimizer = optim.SGD([param], lr=2.0**-10, param_rounding="stochastic")
        stepped(setting, optimizer, -param.detach())  # by an eighth of a place (float16: a whole one)
        assert set(param.abs().tolist()) == ({largest, float("inf")} if dtype == BF16 else {float("inf")})


def test_every_kind_of_number_as_a_state_in_bfloat16() -> None:
    special = torch.tensor([0.0, -0.0, 2.0**-133, -(2.0**-126), 1.5, float("inf"), -float("inf"), float("nan")])
    for setting in SETTINGS:
        param = nn.Parameter(torch.zeros(8))
        optimizer = optim.SGD([param], lr=0.0, momentum=0.5, state_dtype=BF16)
        stepped(setting, optimizer, special)
        expected = 0.5 * torch.zeros(8) + special  # -0.0 is added to 0.0
        engine.assert_same_bits(optimizer.state[param]["momentum_buffer"].float(), expected, str(setting))
