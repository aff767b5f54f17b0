"""torch.distributed.checkpoint, in one process without a group: saved here, continued in another process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import checkpoint
from torch.distributed.checkpoint import state_dict as sharded

from regkernels import FlatParameters, optim
from tests import ROOT
from tests.optim.checkpoint.cases import (
    EXCHANGEABLE,
    OPTIMIZERS,
    Model,
    assert_identical,
    ours,
    pair_of_groups,
    snapshot,
    theirs,
    train,
)
from tests.optim.checkpoint.distributed import CASES, options, parts, put, save
from tests.support.training import assert_near

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # that is what is tested
FORMS = ["nested", "flattened"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], list[Any]]:
    """How all cases ended: without interruption, and continued in another process."""
    folder = tmp_path_factory.mktemp("distributed")
    whole = [save(folder / str(index), case) for index, case in enumerate(CASES)]
    command = [sys.executable, "-m", "tests.optim.checkpoint.distributed", str(folder)]
    subprocess.run(command, check=True, cwd=ROOT)
    return whole, torch.load(folder / "results.pt", weights_only=True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(filter(None, case)))
def test_another_process_continues_bit_for_bit(case: Any, runs: tuple[list[Any], list[Any]]) -> None:
    whole, resumed = (ended[CASES.index(case)] for ended in runs)
    assert_identical(whole, snapshot(resumed))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_getting_and_setting_moves_nothing(name: str, form: str) -> None:
    """Also before the first step, where states are created by a step of lr 0, and for an optimizer without states."""
    model = Model(torch.float32)
    optimizer = ours(name, model)
    weights = snapshot(dict(model.state_dict()))
    packed = parts(model, optimizer, form)
    sharded.set_optimizer_state_dict(model, optimizer, packed["optimizer"], options=options(form))
    assert_identical(snapshot(dict(model.state_dict())), weights)
    train(optimizer, model, range(9))
    weights, before = snapshot(dict(model.state_dict())), snapshot(optimizer.state_dict())
    packed = sharded.get_optimizer_state_dict(model, optimizer, options=options(form))
    sharded.set_optimizer_state_dict(model, optimizer, packed, options=options(form))
    assert_identical(snapshot(dict(model.state_dict())), weights)
    after = optimizer.state_dict()
    for key, state in before["state"].items():
        for what, value in state.items():
            assert_identical(snapshot(after["state"][key][what]), value, what)
    assert [group["l1"] for group in optimizer.param_groups] == [group["l1"] for group in before["param_groups"]]


@pytest.mark.parametrize("form", FORMS)
def test_states_that_were_not_created_are_missed(form: str) -> None:
    """torch creates none where there are gradients, as in a FlatParameters there always are."""
    model = Model(torch.float32)
    optimizer = ours("adam", model)
    train(optimizer, model, range(9))
    packed = parts(model, optimizer, form)["optimizer"]
    fresh = Model(torch.float32)
    FlatParameters(fresh)
    other = ours("adam", fresh)
    if form == "nested":  # what dcp.load leaves of it: it fills only what is there
        packed = sharded.get_optimizer_state_dict(fresh, other)
    with pytest.raises(ValueError, match=r"no state for any parameter.*call model.zero_grad\(\) before"):
        sharded.set_optimizer_state_dict(fresh, other, packed, options=options(form))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", EXCHANGEABLE)
def test_a_checkpoint_of_torchs_optimizer(name: str, form: str, tmp_path: Path) -> None:
    """It has no ``l1``: the planner has to be told that keys may be missing."""
    kind, arguments = OPTIMIZERS[name]
    model = Model()
    before = theirs(name, model)
    train(before, model, range(9))
    checkpoint.save(parts(model, before, form), checkpoint_id=tmp_path / "run", no_dist=True)
    fresh = Model()
    optimizer = getattr(optim, kind)(pair_of_groups(fresh), l1=0.0, **arguments)
    state = parts(fresh, optimizer, form)
    planner = checkpoint.DefaultLoadPlanner(allow_partial_load=True)
    checkpoint.load(state, checkpoint_id=tmp_path / "run", planner=planner, no_dist=True)
    put(state, fresh, optimizer, form)
    train(before, model, range(9, 13))
    train(optimizer, fresh, range(9, 13))
    assert_near(model, fresh)
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 0.05]
