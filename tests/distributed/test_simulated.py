"""What one rank adds to the sums of all, whatever its parameters are spread over."""

from __future__ import annotations

import pytest

from tests.distributed import classes


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize(("sizes", "place"), classes.CASES)
def test_each_part_counts_once(backend: str, sizes: tuple[int, ...], place: tuple[int, ...]) -> None:
    classes.check(sizes, place, backend)
