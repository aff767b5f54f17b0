"""Low-precision weights between and during steps: what is set by hand, what is summed and counted, what a rate of 0 leaves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from regkernels import optim
from tests.support import cases, engine
from tests.support.rounding import BF16, KEEPING, KERNEL, SETTINGS, stepped


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
