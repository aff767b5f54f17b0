"""Saving and loading, also from and to torch.optim in the middle of training."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

import regkernels
from tests.support.training import (
    assert_equal,
    assert_near,
    each_optimizer,
    network,
    ours,
    theirs,
    train,
    twins,
    weights,
)

pytestmark = pytest.mark.usefixtures("one_thread")

HALF = [torch.bfloat16, torch.float16]


def through_a_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same_tensors(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for key, state in a.items():
        assert state.keys() == b[key].keys()
        for name, value in state.items():
            assert value.dtype == b[key][name].dtype and torch.equal(value, b[key][name]), (key, name)


@pytest.mark.parametrize("by_file", [False, True])
@pytest.mark.parametrize("direction", ["torch to ours", "ours to torch", "ours to ours"])
@each_optimizer
def test_training_goes_on_as_if_nothing_had_happened(name: str, direction: str, by_file: bool) -> None:
    makers = {"torch": theirs, "ours": ours}
    first, second = (makers[word] for word in direction.split(" to "))
    model, other = twins(network())
    before = first(name, model.parameters())
    train(before, model, range(4))
    packed = before.state_dict()
    after = second(name, model.parameters(), lr=0.9)  # the saved lr counts
    after.load_state_dict(through_a_file(packed) if by_file else packed)
    train(after, model, range(4, 8))
    train(theirs(name, other.parameters()), other, range(8))
    assert_near(model, other)


@each_optimizer
def test_keys_that_are_missing_keep_this_optimizers_values(name: str) -> None:
    """torch knows no l1: loading its checkpoint must not switch off what this optimizer was made with."""
    model = network()
    packed = theirs(name, model.parameters(), lr=0.125).state_dict()
    assert not {"l1", "l1_mode", "weight_decay_mode"} & packed["param_groups"][0].keys()
    kept = {"l1": 0.25, "l1_mode": "decoupled", "weight_decay_mode": "prox", "mine": "too"}
    groups = [{"params": model[0].parameters(), **kept}, {"params": model[2].parameters(), "l1": 0.5}]
    optimizer = ours(name, groups, l1_mode="subgradient")
    packed["param_groups"] = [{**packed["param_groups"][0], "params": keys} for keys in ([0, 1], [2, 3])]
    optimizer.load_state_dict(packed)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]
    assert {key: optimizer.param_groups[0][key] for key in kept} == kept
    assert optimizer.param_groups[1]["l1"] == 0.5 and optimizer.param_groups[1]["l1_mode"] == "subgradient"
    assert "l1" not in packed["param_groups"][0], "the caller's dict is not changed"


@each_optimizer
def test_torch_takes_our_keys_along_and_gives_them_back(name: str) -> None:
    model = network()
    optimizer = ours(name, model.parameters(), l1=0.25, l1_mode="decoupled")
    visitor = theirs(name, model.parameters())
    visitor.load_state_dict(optimizer.state_dict())
    train(visitor, model, range(2))
    back = ours(name, model.parameters())
    back.load_state_dict(visitor.state_dict())
    assert back.param_groups[0]["l1"] == 0.25 and back.param_groups[0]["l1_mode"] == "decoupled"


def test_flags_of_the_saving_side_are_carried() -> None:
    model, other = twins(network())
    fused = torch.optim.AdamW(model.parameters(), fused=True)
    train(fused, model, range(3))
    optimizer = ours("adamw", model.parameters(), amsgrad=False)
    optimizer.load_state_dict(fused.state_dict())
    train(optimizer, model, range(3, 5))
    assert optimizer.param_groups[0]["fused"] is True and optimizer.param_groups[0]["foreach"] is None
    train(torch.optim.AdamW(other.parameters(), foreach=False), other, range(5))
    assert_near(model, other, 1e-11)  # torch's fused kernel decays in another order


def test_torchs_sgd_saves_buffers_that_are_none() -> None:
    """As it did for parameters without a gradient, or without momentum."""
    model, other = twins(network())
    a, b = ours("momentum", model.parameters()), theirs("momentum", other.parameters())
    for optimizer, net in ((a, model), (b, other)):
        packed = optimizer.state_dict()
        packed["state"] = {key: {"momentum_buffer": None} for key in range(4)}
        optimizer.load_state_dict(packed)
        train(optimizer, net, range(4))
    assert_near(model, other)


@pytest.mark.parametrize("step", [3, 3.0, torch.tensor(3.0), torch.tensor([3.0]), torch.tensor(3, dtype=torch.int64)])
def test_step_counts_of_old_checkpoints(step: Any) -> None:
    model, other = twins(network())
    before = theirs("adam", model.parameters())
    train(before, model, range(3))
    packed = copy.deepcopy(before.state_dict())
    for state in packed["state"].values():
        state["step"] = step
    optimizer = ours("adam", model.parameters())
    optimizer.load_state_dict(packed)
    train(optimizer, model, range(3, 6))
    train(theirs("adam", other.parameters()), other, range(6))
    assert_near(model, other)
    for state in optimizer.state_dict()["state"].values():
        assert state["step"].shape == () and state["step"] == 6 and state["step"].dtype == torch.float32


@pytest.mark.parametrize("dtype", HALF, ids=str)
@each_optimizer
def test_float32_states_of_half_precision_weights_survive(name: str, dtype: torch.dtype) -> None:
    """torch's load_state_dict rounds them to the weights' type; what is loaded must continue bit for bit."""
    model, other = twins(network(dtype))
    options = {"l1": 1e-3, "lr": 0.05}
    whole = ours(name, other.parameters(), **options)
    train(whole, other, range(8))
    optimizer = ours(name, model.parameters(), **options)
    train(optimizer, model, range(4))
    packed = through_a_file(optimizer.state_dict())
    loaded = ours(name, model.parameters())
    loaded.load_state_dict(packed)
    assert_same_tensors(packed["state"], loaded.state_dict()["state"])
    loaded.load_state_dict(loaded.state_dict())  # as Accelerate does when it wraps an optimizer
    train(loaded, model, range(4, 8))
    assert_equal(model, other)
    assert_same_tensors(whole.state_dict()["state"], loaded.state_dict()["state"])
    for state in loaded.state_dict()["state"].values():
        for value in state.values():
            assert value.dtype == torch.float32
        if state:
            assert any((v != v.to(dtype)).any() for k, v in state.items() if k != "step"), "more bits than the weights"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each_optimizer
def test_training_does_not_write_into_what_was_loaded(name: str, dtype: torch.dtype) -> None:
    model = network(dtype)
    optimizer = ours(name, model.parameters())
    train(optimizer, model, range(2))
    packed = copy.deepcopy(optimizer.state_dict())
    kept = copy.deepcopy(packed)
    other = ours(name, model.parameters())
    other.load_state_dict(packed)
    train(other, model, range(2, 5))
    assert_same_tensors(packed["state"], kept["state"])


def _without_a_group(packed: dict[str, Any]) -> None:
    packed["param_groups"].pop()


def _without_a_parameter(packed: dict[str, Any]) -> None:
    packed["param_groups"][0]["params"].pop()


def _with_states_of(shape: tuple[int, ...]) -> Any:
    def change(packed: dict[str, Any]) -> None:
        packed["state"][0]["exp_avg"] = torch.ones(shape, dtype=torch.float64)

    return change


BROKEN = {
    "a group too few": (_without_a_group, ValueError, "number of parameter groups"),
    "a parameter too few": (_without_a_parameter, ValueError, "size of optimizer's group"),
    "a state that would broadcast": (_with_states_of((5,)), (RuntimeError, ValueError), "exp_avg.*shape"),
    "a state of one element": (_with_states_of((1,)), (RuntimeError, ValueError), "exp_avg.*shape"),
    "a transposed state": (_with_states_of((5, 7)), (RuntimeError, ValueError), "exp_avg.*shape"),
    "a larger state": (_with_states_of((7, 7)), (RuntimeError, ValueError), "exp_avg.*shape"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_does_not_fit_is_refused_and_nothing_changed(case: str) -> None:
    """On loading, or in the next step at the latest."""
    model = network()
    optimizer = ours("adam", [{"params": model[0].parameters(), "l1": 0.1}, {"params": model[2].parameters()}])
    train(optimizer, model, range(2))
    packed, before = copy.deepcopy(optimizer.state_dict()), weights(model)
    change, error, message = BROKEN[case]
    broken = copy.deepcopy(packed)
    change(broken)

    def load_and_step() -> None:
        optimizer.load_state_dict(broken)
        optimizer.step()

    with pytest.raises(error, match=message):
        load_and_step()
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), before, strict=True))
    optimizer.load_state_dict(packed)
    assert_same_tensors(optimizer.state_dict()["state"], packed["state"])
    assert optimizer.param_groups[0]["l1"] == 0.1


@pytest.mark.parametrize("flat", ["saved", "loaded", "both"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each_optimizer
def test_flat_parameters(name: str, dtype: torch.dtype, flat: str) -> None:
    """Layout in memory is no part of a checkpoint: a run may be flat before, after, or not at all."""
    model, other = twins(network(dtype))
    whole = ours(name, other.parameters(), l1=1e-3)
    train(whole, other, range(6))
    if flat != "loaded":
        regkernels.FlatParameters(model)
    optimizer = ours(name, model.parameters(), l1=1e-3)
    train(optimizer, model, range(3))
    packed, saved = through_a_file(optimizer.state_dict()), through_a_file(model.state_dict())
    resumed = network(dtype)
    resumed.load_state_dict(saved)
    if flat != "saved":
        regkernels.FlatParameters(resumed)
    loaded = ours(name, resumed.parameters())
    loaded.load_state_dict(packed)
    train(loaded, resumed, range(3, 6))
    assert_equal(resumed, other)
    assert_same_tensors(loaded.state_dict()["state"], whole.state_dict()["state"])


@pytest.mark.parametrize("default", [torch.float32, torch.float64], ids=str)
def test_step_counts_have_torchs_type(default: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_default_dtype", lambda: default)
    steps = []
    for make, net in zip((ours, theirs), twins(nn.Linear(5, 3)), strict=True):
        optimizer = make("adam", net.parameters())
        train(optimizer, net, range(1))
        steps.append(optimizer.state_dict()["state"][0]["step"])
    assert steps[0].dtype == steps[1].dtype == default
    assert steps[0].shape == steps[1].shape == () and steps[0].device == steps[1].device
