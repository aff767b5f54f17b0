"""Compiled kernels, run: the reference's bits, no fault, and all of their code seen at work.

Here for one target and a selection of kernels; `python -m tests.triton.compiled --run` runs all for every target.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest

from regkernels import backends
from tests.triton.kernel import Kernel
from tests.triton.ptx import coverage
from tests.triton.ptx.device import RunningDevice, running
from tests.triton.ptx.machine import translated
from tests.triton.ptx.permissions import WRITTEN
from tests.triton.ptx.uses import Use, selected

USES = selected()


@pytest.fixture(scope="module")
def device() -> Iterator[RunningDevice]:
    with running("sm_90") as device:
        yield device


@cache
def checked(use: Use, device: RunningDevice) -> int:
    """Returns how many kernels were launched."""
    with backends.use("reference"):
        expected = use.run()
    before = device.launches
    use.check(use.run(), expected)
    return device.launches - before


@pytest.mark.parametrize("use", USES, ids=[use.name for use in USES])
def test_compiled_kernels_give_the_bits_of_the_reference(use: Use, device: RunningDevice) -> None:
    assert checked(use, device) > 0


def test_all_of_the_code_is_seen_at_work(device: RunningDevice) -> None:
    for use in USES:
        checked(use, device)
    missing = [
        text
        for kernel in (Kernel("sm_90", compiled) for compiled in device.compiled())
        for text in coverage.unseen(kernel.name, translated(kernel.assembly), device.tallies[kernel.assembly])
    ]
    assert not missing, "\n".join(missing)


def test_every_function_is_among_them(device: RunningDevice) -> None:
    for use in USES:
        checked(use, device)
    assert device.counts.keys() == WRITTEN.keys()
