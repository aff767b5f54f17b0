"""A run that goes back and forth between torch.optim and regkernels.optim is one run."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from regkernels import optim
from tests.optim.checkpoint.cases import (
    EXCHANGEABLE,
    OPTIMIZERS,
    Model,
    assert_identical,
    pair_of_groups,
    snapshot,
    theirs,
    through_a_file,
    train,
)
from tests.support.training import assert_near

TOLERANCE = 1e-12


def _ours(name: str, model: Model, **more: Any) -> optim.Optimizer:
    kind, options = OPTIMIZERS[name]
    return getattr(optim, kind)(pair_of_groups(model), **{"lr": 0.02, **options, **more})


@pytest.mark.parametrize("by_file", [False, True], ids=["in memory", "by file"])
@pytest.mark.parametrize("name", EXCHANGEABLE)
def test_taking_turns_with_torch(name: str, by_file: bool) -> None:
    """Two groups, and parameters that have their first gradient while the one or the other is at work."""
    model = Model()
    other = copy.deepcopy(model)
    whole = theirs(name, other)
    train(whole, other, range(16))
    packed: dict[str, Any] | None = None
    for turn, make in enumerate([_ours, theirs, _ours, theirs, _ours, theirs, _ours, theirs]):
        optimizer = make(name, model, lr=0.9)  # the saved lr counts
        if packed is not None:
            optimizer.load_state_dict(packed)
        else:
            for group, lr in zip(optimizer.param_groups, (0.02, 0.05), strict=True):
                group["lr"] = lr
        train(optimizer, model, range(2 * turn, 2 * turn + 2))
        packed = through_a_file(optimizer.state_dict()) if by_file else optimizer.state_dict()
    assert_near(model, other, TOLERANCE)
    expected = whole.state_dict()["state"]
    assert packed["state"].keys() == expected.keys()
    for key, state in expected.items():
        assert packed["state"][key].keys() == state.keys()
        for what, value in state.items():
            torch.testing.assert_close(packed["state"][key][what], value, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", EXCHANGEABLE)
def test_half_precision_states_of_torch_are_widened_exactly(name: str, dtype: torch.dtype) -> None:
    model = Model(dtype)
    before = theirs(name, model)
    train(before, model, range(3))
    packed = snapshot(before.state_dict())
    optimizer = _ours(name, model)
    optimizer.load_state_dict(packed)
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for key, state in packed["state"].items():
        for what, value in state.items():
            loaded = optimizer.state[params[key]][what]
            assert_identical(loaded.detach().clone(), value.float(), f"{key} {what}")


@pytest.mark.parametrize("name", ["momentum", "amsgrad"])
def test_an_option_switched_by_the_saved_group_counts_as_in_torch(name: str) -> None:
    """momentum and amsgrad are saved: loading switches them on, whatever the optimizer was made with."""
    kind, options = OPTIMIZERS[name]
    off = {"momentum": 0.0, "dampening": 0.0} if kind == "SGD" else {"amsgrad": False}
    results = []
    for module in (torch.optim, optim):
        torch.manual_seed(0)
        model = Model()
        before = getattr(module, kind)(model.parameters(), **{"lr": 0.02, **options})
        train(before, model, range(3))
        after = getattr(module, kind)(model.parameters(), **{"lr": 0.02, **off})
        after.load_state_dict(before.state_dict())
        train(after, model, range(3, 9))
        results.append(model)
    assert_near(*results, TOLERANCE)


def test_momentum_that_was_switched_off_keeps_its_buffers_as_in_torch() -> None:
    results = []
    for module in (torch.optim, optim):
        torch.manual_seed(0)
        model = Model()
        before = module.SGD(model.parameters(), lr=0.02, momentum=0.9)
        train(before, model, range(3))
        packed = before.state_dict()
        packed["param_groups"][0]["momentum"] = 0.0
        after = module.SGD(model.parameters(), lr=0.02)
        after.load_state_dict(packed)
        train(after, model, range(3, 6))
        after.param_groups[0]["momentum"] = 0.9
        train(after, model, range(6, 9))
        results.append(model)
    assert_near(*results, TOLERANCE)
