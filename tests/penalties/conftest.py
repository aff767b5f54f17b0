"""Every test of a penalty or an operator runs with every backend."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import regkernels


@pytest.fixture(autouse=True, params=regkernels.info()["backends"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with regkernels.backends.use(request.param):
        yield request.param
