"""Sums of parameters that are spread over ranks, formed by the Triton kernels."""

from __future__ import annotations

import pytest

from tests.distributed import classes

pytestmark = pytest.mark.interpreted


@pytest.mark.parametrize(("sizes", "place"), classes.CASES[1:4])
def test_each_part_counts_once(sizes: tuple[int, ...], place: tuple[int, ...]) -> None:
    classes.check(sizes, place, "triton")
