"""Groups that lie on several ranks: the same step as on one process, in one message for each phase."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.distributed import split_cases, world
from tests.distributed.split_cases import RUNS, SPREADS

CASES = [(ranks, *names) for ranks in SPREADS for names in split_cases.names(ranks)]
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 0.0, torch.bfloat16: 0.0}


@pytest.fixture(scope="module")
def worlds() -> dict[int, list[Any]]:
    return {ranks: world.run(ranks, split_cases.train_all, ranks) for ranks in SPREADS}


@pytest.mark.parametrize(("ranks", "name", "run"), CASES)
def test_the_step_is_that_of_one_process(worlds: dict[int, list[Any]], ranks: int, name: str, run: str) -> None:
    expected = split_cases.train(SPREADS[ranks][name], RUNS[run])
    close = dict.fromkeys(("rtol", "atol"), TOLERANCES[RUNS[run].dtype])
    for result in worlds[ranks]:
        found = result[name, run]
        for after, wanted in zip(found["weights"], expected["weights"], strict=True):
            for places, weight, want in zip(found["places"], after, wanted, strict=True):
                want = want.flatten()[places]
                torch.testing.assert_close(weight, want, **close)
                assert torch.equal(weight == 0, want == 0)
        for places, state, wanted in zip(found["places"], found["states"], expected["states"], strict=True):
            assert state.keys() == wanted.keys()
            for key, want in wanted.items():
                torch.testing.assert_close(state[key], want.flatten()[places] if want.dim() else want, **close)
        for sums, want in zip(found["stats"], expected["stats"], strict=True):
            torch.testing.assert_close(sums, want, **close)
        assert found["messages"] == RUNS[run].messages


def test_some_groups_become_zeros_and_some_do_not() -> None:
    """Of the runs above, so that they tell a sum over a part of a group from that over all of it."""
    for ranks, name, run in CASES:
        if "group_l1" in RUNS[run].options:
            weights = split_cases.train(SPREADS[ranks][name], RUNS[run])["weights"]
            assert any((weight == 0).any() for after in weights for weight in after), (name, run)
            assert any((weight != 0).any() for after in weights for weight in after), (name, run)
