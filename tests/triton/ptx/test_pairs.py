"""Sums as pairs of float32, where float64 is slow: their compiled code, run on numbers for which they hold and do not."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from torch import Tensor

import regkernels as rk
from tests.support.hostile import assert_sums, close, exactly, numbers, step
from tests.triton.kernel import Kernel
from tests.triton.ptx import coverage
from tests.triton.ptx.device import RunningDevice, running
from tests.triton.ptx.machine import translated

DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(scope="module")
def device() -> Iterator[RunningDevice]:
    with running("sm_89") as device:
        yield device


@cache
def checked(dtype: torch.dtype, device: RunningDevice) -> int:
    """Returns how many kernels were launched. Sums are formed in float64 of half of these numbers."""
    torch.manual_seed(0)
    before = device.launches
    ordinary = numbers("ordinary", dtype)
    for kind in ("tiny", "equal", "huge", "zero"):
        x = numbers(kind, dtype)
        updated, stats = step(x, ordinary)
        assert_sums(updated, ordinary, stats)
        updated, stats = step(ordinary, x, lr=0.0)
        assert_sums(updated, x, stats)
        of_float64 = [*placed(x), torch.zeros(1, dtype=torch.float64)]  # so that the penalty is one, too
        expected = sum(exactly(of, 1) for of in of_float64), sum(exactly(of, 2) for of in of_float64)
        assert rk.l1_penalty(of_float64, 0.5).item() == close(0.5 * expected[0])
        assert rk.l2_penalty(of_float64, 0.5).item() == close(0.5 * expected[1])
        both = rk.elastic_net_penalty(of_float64, 0.5, 0.25).item()
        assert both == close(0.5 * expected[0] + 0.25 * expected[1])
    return device.launches - before


def placed(x: Tensor) -> list[Tensor]:
    """Returns tensors of more than a chunk, of some blocks and a rest, of one and of none, and one that is not at a multiple of 16 bytes."""
    return [x.repeat(5)[: 8192 + 9], x.repeat(3)[: 4096 + 9], x[: 1024 + 9].clone(), x[:9].clone(), x[1:].repeat(2)[1:]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compiled_sums_are_right(dtype: torch.dtype, device: RunningDevice) -> None:
    assert checked(dtype, device) > 0


def test_all_of_the_code_is_seen_at_work(device: RunningDevice) -> None:
    """Of the kernels that do nothing but add up."""
    for dtype in DTYPES:
        checked(dtype, device)
    kernels = [Kernel("sm_89", compiled) for compiled in device.compiled()]
    missing = [
        text
        for kernel in kernels
        if kernel.function == "reduce" and kernel.dtype in DTYPES
        for text in coverage.unseen(kernel.name, translated(kernel.assembly), device.tallies[kernel.assembly])
    ]
    assert not missing, "\n".join(missing)
