"""Weights and states in fewer bits: nothing is lost beside a remainder or a master copy, and chance loses nothing on average."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from regkernels import optim, reference
from tests import cases, engine

KERNEL = engine.kernels(threads=(1,))[-1]
SETTINGS = [engine.REFERENCE, *engine.kernels(threads=(1,))]
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
KEEPING = [("remainder", BF16), ("master", BF16), ("master", F16)]


def stepped(setting: engine.Setting, optimizer: optim.Optimizer, *gradients: Tensor) -> None:
    """A step with these gradients, one for each parameter."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for param, gradient in zip(params, gradients, strict=True):
        param.grad = gradient.to(param.dtype, copy=True)
    with engine.active(setting):
        optimizer.step()


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
    patterns = cases.every_pattern(dtype)
    gradients = [patterns[torch.randperm(len(patterns))] for _ in range(2)]
    for setting in (engine.REFERENCE, KERNEL):
        assert_a_float32_run(case, cases.model_of_one(patterns, *gradients), setting, lr=lr)


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


# --- what is set by hand ---


@pytest.mark.parametrize("value", [0.0, -0.0, 25.0, float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize(("rounding", "dtype"), KEEPING, ids=str)
def test_a_weight_that_was_set_counts(rounding: str, dtype: torch.dtype, value: float) -> None:
    """Whatever is kept beside it from before."""
    for setting in SETTINGS:
        param = nn.Parameter(torch.randn(4096).to(dtype))
        optimizer = optim.SGD([param], lr=0.1, param_rounding=rounding)
        for _ in range(2):
            stepped(setting, optimizer, torch.randn(4096))
        kept = optimizer.state[param][rounding]
        assert (kept < 0).any() and (kept > 0).any()
        with torch.no_grad():
            param.fill_(value)
        stepped(setting, optimizer, torch.zeros(4096))
        expected = torch.full((4096,), value, dtype=dtype)
        if rounding == "master":
            engine.assert_same_bits(param.detach(), expected, str(setting))
            engine.assert_same_bits(kept, expected.float(), str(setting))
        elif abs(value) == float("inf"):  # less than half a place below is the largest float32
            assert (param.abs() > 3e38).all() and (param.sign() == expected.sign()).all()
        else:
            torch.testing.assert_close(param.detach(), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("rounding", "dtype"), KEEPING, ids=str)
def test_pruned_weights_stay_zero(rounding: str, dtype: torch.dtype) -> None:
    pruned = torch.rand(4096) < 0.5
    for setting in SETTINGS:
        param = nn.Parameter(torch.randn(4096).to(dtype))
        optimizer = optim.AdamW([param], lr=0.1, param_rounding=rounding)
        stepped(setting, optimizer, torch.randn(4096))
        optimizer.state[param]["exp_avg"].masked_fill_(pruned, 0.0)
        for _ in range(3):
            with torch.no_grad():
                param.masked_fill_(pruned, 0.0)
            stepped(setting, optimizer, torch.randn(4096).masked_fill(pruned, 0.0))
            assert not param[pruned].any() and param[~pruned].all() and param.isfinite().all(), setting


def test_a_master_copy_follows_another_models_weights() -> None:
    """As a run that begins with them, states aside."""
    model, other = (nn.Linear(40, 30).to(BF16) for _ in range(2))
    optimizer = optim.SGD(model.parameters(), lr=0.1, param_rounding="master")
    gradients = [torch.randn_like(param) for param in model.parameters()]
    for _ in range(3):
        stepped(KERNEL, optimizer, *gradients)
    with torch.no_grad():
        for param in other.parameters():
            param.add_(4)  # by chance a copy could round to a weight of the other model, and would stay
    model.load_state_dict(other.state_dict())
    fresh = optim.SGD(other.parameters(), lr=0.1, param_rounding="master")
    for _ in range(3):
        for each in (optimizer, fresh):
            stepped(KERNEL, each, *gradients)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        engine.assert_same_bits(optimizer.state[a]["master"], fresh.state[b]["master"])


# --- steps ---


@pytest.mark.parametrize("precision", cases.PRECISIONS, ids=str)
def test_a_learning_rate_of_zero_leaves_every_bit(precision: cases.Precision) -> None:
    for dtype in precision.dtypes:
        patterns = cases.every_pattern(dtype)
        gradient = torch.randn(len(patterns)).to(dtype)
        for setting in SETTINGS:
            param = nn.Parameter(patterns.clone())
            optimizer = optim.AdamW([param], lr=0.0, l1=0.3, **precision.options)
            for _ in range(2):
                stepped(setting, optimizer, gradient)
            assert torch.equal(engine.bits(param), engine.bits(patterns)), setting
            assert optimizer.state[param]["exp_avg"].any()


@pytest.mark.parametrize("precision", cases.PRECISIONS, ids=str)
def test_stats_are_those_of_the_weights_as_they_are_stored(precision: cases.Precision) -> None:
    for setting in SETTINGS:
        params = [nn.Parameter(torch.randn(3000).to(dtype)) for dtype in precision.dtypes]
        optimizer = optim.AdamW(params, lr=0.05, l1=0.3, stats=True, **precision.options)
        for lr in (0.05, 0.05, 0.0):
            optimizer.param_groups[0]["lr"] = lr
            stepped(setting, optimizer, *(torch.randn(3000) for _ in params))
            stored = torch.cat([param.detach().double() for param in params])
            assert optimizer.stats is not None
            assert optimizer.stats.nonzeros.item() == stored.count_nonzero() < len(stored)
            torch.testing.assert_close(optimizer.stats.l1_norm.item(), stored.abs().sum().item(), rtol=1e-12, atol=0)
            torch.testing.assert_close(
                optimizer.stats.squared_norm.item(), stored.square().sum().item(), rtol=1e-12, atol=0
            )


def test_a_parameter_draws_by_its_own_steps() -> None:
    """Not by those of others: one that gets its first gradient later, or none at times, is rounded as one that did not."""
    values = torch.randn(2, 500).to(BF16)
    gradients = torch.randn(6, 500)
    for setting in SETTINGS:
        outcomes = []
        for steps in ([0, 1, 2, 3, 4, 5], [2, 3, 5]):
            params = [nn.Parameter(value.clone()) for value in values]
            optimizer = optim.SGD(params, lr=0.01, momentum=0.9, param_rounding="stochastic", state_dtype=BF16, seed=9)
            taken = 0
            for step in range(6):
                params[0].grad = gradients[step].to(BF16)
                params[1].grad = gradients[taken].to(BF16) if step in steps else None
                taken += step in steps
                with engine.active(setting):
                    optimizer.step()
                if taken == 3:
                    break
            outcomes.append((params[1].detach().clone(), *optimizer.state[params[1]].values()))
        assert len(outcomes[0]) == 3
        for a, b in zip(*outcomes, strict=True):
            assert torch.equal(a, b), setting


@pytest.mark.parametrize("options", [{"param_rounding": "stochastic"}, {"momentum": 0.9, "state_dtype": BF16}], ids=str)
def test_sgd_counts_its_steps_where_it_needs_to(options: dict[str, Any]) -> None:
    for setting in SETTINGS:
        param, wide_one = nn.Parameter(torch.ones(9, dtype=BF16)), nn.Parameter(torch.ones(9))
        optimizer = optim.SGD([param, wide_one], lr=0.1, **options)
        plain = optim.SGD([nn.Parameter(torch.ones(9, dtype=BF16))], lr=0.1, param_rounding="remainder")
        for _ in range(3):
            stepped(setting, optimizer, torch.ones(9), torch.ones(9))
            stepped(setting, plain, torch.ones(9))
        assert optimizer.state[param]["step"].item() == 3
        assert all("step" not in state for state in plain.state.values())
