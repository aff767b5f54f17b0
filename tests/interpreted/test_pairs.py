"""Sums as pairs of float32, as they are formed where float64 is slow: right to 1e-10 whatever is added up."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import regkernels as rk
from regkernels.backends.triton import architectures
from regkernels.backends.triton import launch as launching
from regkernels.backends.triton.kernels.columns import CHUNK
from tests.support import cases, engine
from tests.support.hostile import KINDS, SIZE, assert_sums, close, exactly, numbers, step

pytestmark = pytest.mark.interpreted

DTYPES = (torch.float32, *cases.HALF)


@pytest.fixture(autouse=True)
def pairs(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Makes the device one on which float64 is slow. Holds, of each launch that forms such sums, whether they are pairs."""
    found: list[bool] = []
    of_device, launch = architectures.of_device, launching.launch

    def noted(*arguments: Any, **constants: Any) -> None:
        found.extend([constants["PAIRS"]] if "PAIRS" in constants else [])
        launch(*arguments, **constants)

    monkeypatch.setattr(architectures, "of_device", lambda device: of_device(device)._replace(pairs=True))
    monkeypatch.setattr(launching, "launch", noted)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_of_a_step(dtype: torch.dtype, kind: str, pairs: list[bool]) -> None:
    """Of the updated weights, also where they are loaded again; the gradient's are of another kind."""
    w, g = numbers(kind, dtype), numbers(KINDS[(KINDS.index(kind) + 5) % len(KINDS)], dtype)
    updated, stats = step(w, g)
    assert_sums(updated, g, stats)
    assert pairs == [True]


def test_weights_that_stay_as_they_are(pairs: list[bool]) -> None:
    for kind in ("ordinary", "tiny"):
        w, g = numbers(kind, torch.bfloat16), numbers("ordinary", torch.bfloat16)
        updated, stats = step(w, g, lr=0.0)
        assert torch.equal(updated, w)
        assert_sums(w, g, stats)
        g[7] = math.nan
        updated, stats = step(w, g, skip_nonfinite=True)  # whose sums are those of chunks without a block
        assert torch.equal(updated, w) and math.isnan(stats.grad_norm.item())
        assert stats.squared_norm.item() == close(exactly(w, 2))
    assert all(pairs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms_and_penalties(dtype: torch.dtype, kind: str, pairs: list[bool]) -> None:
    x = numbers(kind, dtype)
    of_float64 = [x, torch.zeros(1, dtype=torch.float64)]  # so that the penalty is one, too
    expected = exactly(x, 1), exactly(x, 2)
    assert rk.l1_penalty(of_float64, 0.5).item() == close(0.5 * expected[0])
    assert rk.l2_penalty(of_float64, 0.5).item() == close(0.5 * expected[1])
    both = rk.elastic_net_penalty(of_float64, 0.5, 0.25).item()
    assert both == close(0.5 * expected[0] + 0.25 * expected[1])
    _, stats = step(torch.ones_like(x), x, stats=True, max_grad_norm=1e300)
    assert stats.grad_norm.item() == close(math.sqrt(expected[1]))
    assert pairs.count(True) == 5 and pairs.count(False) == 3  # those of float64 are not


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("value", "place"), [(math.nan, 0), (math.inf, SIZE - 1), (-math.inf, 1027)])
def test_a_single_nan_or_infinity_is_visible(dtype: torch.dtype, value: float, place: int) -> None:
    x, ones = torch.randn(SIZE).to(dtype), torch.ones(SIZE, dtype=dtype)
    x[place] = value
    expected = abs(value)
    for penalty in (rk.l1_penalty, rk.l2_penalty):
        assert penalty(x, 1.0).item() == close(expected)
    _, stats = step(ones, x, lr=0.0)
    assert stats.grad_norm.item() == close(expected)
    _, stats = step(x, ones, lr=0.0)
    assert [stats.l1_norm.item(), stats.squared_norm.item()] == [close(expected)] * 2
    assert stats.nonzeros.item() == x.count_nonzero() and stats.grad_norm.item() == close(math.sqrt(SIZE))


@pytest.mark.parametrize("kind", ["equal", "mixed"])
def test_more_than_a_chunk(kind: str) -> None:
    w, g = (numbers(kind, torch.float32).repeat(4) for _ in range(2))
    updated, stats = step(w, g)
    assert w.numel() > CHUNK.value
    assert_sums(updated, g, stats)


def test_the_same_input_gives_the_same_bits() -> None:
    w, g = numbers("ordinary", torch.float32), numbers("equal", torch.float32)
    _, first = step(w, g)
    _, again = step(w, g)
    for value, expected in zip(again, first, strict=True):
        engine.assert_same_bits(value, expected)


def test_a_gradient_in_the_memory_of_its_weight_is_that_before_the_step(pairs: list[bool]) -> None:
    """Of numbers whose squares overflow, which would be added up once more after the step."""
    param = nn.Parameter(torch.full((SIZE,), 1e30))
    param.grad = param.detach()
    expected = math.sqrt(exactly(param.detach(), 2))
    optimizer = rk.optim.SGD([param], lr=0.5, stats=True)
    optimizer.step()
    assert optimizer.stats.grad_norm.item() == close(expected)
    assert pairs == [False]
