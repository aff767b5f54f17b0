"""Beside groups that lie on several ranks, whose step is that of the reference, everything else goes through the Triton kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from regkernels import backends
from tests.distributed import split_cases, world
from tests.distributed.split_cases import RUNS, Spread

pytestmark = pytest.mark.interpreted

SPREAD = Spread(((4, 2), (3, 2)), ((0,), None))
NAMES = ("clipped, with sums", "left out")


def _train(rank: int) -> list[Any]:
    mesh = split_cases.mesh_of(2)
    with backends.use("triton"):
        return [split_cases.train(SPREAD, RUNS[name], mesh) for name in NAMES]


def test_the_step_is_that_of_one_process() -> None:
    close = {"rtol": 1e-12, "atol": 1e-12}
    for result in world.run(2, _train):
        for name, found in zip(NAMES, result, strict=True):
            with backends.use("reference"):
                expected = split_cases.train(SPREAD, RUNS[name])
            for after, wanted in zip(found["weights"], expected["weights"], strict=True):
                for places, weight, want in zip(found["places"], after, wanted, strict=True):
                    torch.testing.assert_close(weight, want.flatten()[places], **close)
            for sums, want in zip(found["stats"], expected["stats"], strict=True):
                torch.testing.assert_close(sums, want, **close)
            assert found["messages"] == RUNS[name].messages
