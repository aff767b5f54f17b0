"""The checker is checked: mistakes in kernels are caught. `python -m tests.triton.ptx.mutants` tries more of them."""

from __future__ import annotations

from tests.triton.ptx.mutants import NAMES, outcome
from tests.triton.ptx.uses import USES


def test_mistakes_are_caught() -> None:
    """Of each kind two in each kernel: no barrier, no guard, another constant, operands the other way around."""
    found = outcome([use for use in USES if use.name in NAMES], count=2)
    assert found.tried > 100
    assert not found.unexplained
    assert found.caught >= 0.95, found.survivors
