"""An optimizer kept on the CPU against the plain one: the same bits, for every rule, type and option, whatever gradients come.

The CPU plays the accelerator; tests/gpu/test_offload.py does the same with a real one.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from regkernels import optim
from tests.support import cases
from tests.support.offloading import Pair, of_case
from tests.support.releasing import data

BOTH = pytest.mark.parametrize("free", [False, True])


@pytest.mark.parametrize("case", cases.MATRIX, ids=str)
def test_every_rule_and_mode(case: cases.Case) -> None:
    of_case(case, free=True, stats=True, max_grad_norm=0.1).train()


@BOTH
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("case", cases.FEW, ids=str)
def test_every_dtype(case: cases.Case, dtype: torch.dtype, free: bool) -> None:
    of_case(case, free=free, dtype=dtype, stats=True).train()


OPTIONS: list[dict[str, Any]] = [
    {"max_grad_norm": 0.01},
    {"max_grad_norm": 0.01, "skip_nonfinite": True},
    {"l1": 0.0, "mcp": 0.1, "mcp_gamma": 1.7},
    {"group_l1": 0.1, "group_dim": 0},
    {"positive": True},
    {"param_rounding": "nearest"},
    {"param_rounding": "stochastic", "seed": 5},
    {"param_rounding": "remainder"},
    {"state_dtype": torch.bfloat16, "seed": 5},
]


@BOTH
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options(options: dict[str, Any], free: bool) -> None:
    """Random numbers are those of the parameter's place among all."""
    pair = Pair(free=free, dtype=torch.bfloat16, stats=True, **{**cases.STRENGTHS, **options})
    pair.train(4)
    assert pair.offloaded.stats.grad_norm > 0.01, "nothing was clipped"


def test_clipping_is_by_the_norm_of_all_gradients() -> None:
    """Against torch's function, which finds the gradients only where they stay."""
    pair = Pair(optim.SGD, free=True, lr=1.0, max_grad_norm=0.05, stats=True)
    model = copy.deepcopy(pair.models[1])
    model(data(0, torch.float32)).square().mean().backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
    assert norm > 0.05
    pair.backward(0)
    pair.offloaded.step()
    torch.testing.assert_close(pair.offloaded.stats.grad_norm, norm.double())
    for param, other in zip(pair.models[1].parameters(), model.parameters(), strict=True):
        group = next(g for g in pair.offloaded.param_groups if any(p is param for p in g["params"]))
        if other.grad is not None:
            torch.testing.assert_close(param.detach(), other.detach() - group["lr"] * other.grad)


@BOTH
def test_branches_that_take_turns(free: bool) -> None:
    Pair(free=free, **cases.STRENGTHS).train(6, lambda step: ("left", "right", "right")[step % 3])


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_micro_batches(free: bool, dtype: torch.dtype) -> None:
    """`left` has a gradient from one of them only; autograd rounds every sum to the type of the weights."""
    pair = Pair(free=free, dtype=dtype, max_grad_norm=0.5, **cases.STRENGTHS)
    for step in range(3):
        pair.zero_grad()
        for number, branch in enumerate(("left", "right", "right", "right")):
            pair.backward(step + number, branch)
            assert all((param.grad is None) for param in pair.models[1].parameters()) == free
        pair.step(step)


def test_gradients_are_used_up_or_stay() -> None:
    for free in (False, True):
        pair = Pair(free=free, **cases.STRENGTHS)
        pair.backward(0)
        pair.step()
        before = copy.deepcopy(pair.models[1].state_dict())
        pair.offloaded.step()
        changed = [name for name, value in pair.models[1].state_dict().items() if not torch.equal(value, before[name])]
        assert bool(changed) == (not free)


def test_zero_grad_drops_what_waits() -> None:
    pair = Pair(free=True, **cases.STRENGTHS)
    for _ in range(2):
        pair.backward(7)
        pair.backward(8)
        pair.zero_grad()
        pair.backward(1)
        pair.step()
        pair.zero_grad()


def test_gradients_that_are_changed_before_the_step() -> None:
    """As clip_grad_norm_ does, and through .data, which leaves no trace."""
    pair = Pair(**cases.STRENGTHS)
    for step in range(2):
        pair.zero_grad()
        pair.backward(step)
        for model, _ in pair.both:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            model.scale.grad.data.mul_(2)
            model.transposed.grad = torch.full_like(model.transposed, 0.1).t().contiguous().t()
        pair.step(step)


def test_gradients_set_by_hand() -> None:
    """They are added to those that have left the device."""
    pair = Pair(free=True, **cases.STRENGTHS)
    for step in range(2):
        pair.zero_grad()
        pair.backward(step)
        pair.models[0].scale.grad += 2.0
        pair.models[1].scale.grad = torch.tensor(2.0)
        pair.models[0].unused.grad, pair.models[1].unused.grad = torch.ones(7), torch.ones(7)
        pair.step(step)
        assert pair.models[1].unused.grad is None
