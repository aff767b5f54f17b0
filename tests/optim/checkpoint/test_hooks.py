"""Hooks around saving and loading, and dictionaries that belong to the caller."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.training import network, ours, train

pytestmark = pytest.mark.usefixtures("one_thread")


def test_hooks_see_and_change_what_is_loaded() -> None:
    model = network(torch.bfloat16)
    optimizer = ours("momentum", model.parameters())
    train(optimizer, model, range(2))
    packed = optimizer.state_dict()
    loaded = ours("momentum", model.parameters(), l1=0.5)
    seen = []

    def replace(o: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        assert o is loaded and state_dict["state"].keys() == packed["state"].keys()
        assert "stranger" in state_dict["param_groups"][0]
        states = {k: {n: v * 2 + 2**-12 for n, v in s.items()} for k, s in state_dict["state"].items()}
        return {"state": states, "param_groups": state_dict["param_groups"]}

    def edit(o: Any, state_dict: dict[str, Any]) -> None:
        state_dict["param_groups"] = [{**group, "lr": 0.75} for group in state_dict["param_groups"]]
        state_dict["param_groups"][0].pop("l1")

    packed["param_groups"][0]["stranger"] = 1
    loaded.register_load_state_dict_pre_hook(replace)
    loaded.register_load_state_dict_pre_hook(edit)
    loaded.register_load_state_dict_post_hook(lambda o: seen.append(o.param_groups[0]["lr"]))
    loaded.load_state_dict(packed)
    assert seen == [0.75] and loaded.param_groups[0]["l1"] == 0.5
    for key, param in enumerate(model.parameters()):
        wanted = packed["state"][key]["momentum_buffer"] * 2 + 2**-12
        assert torch.equal(loaded.state[param]["momentum_buffer"], wanted)
    assert len(loaded._optimizer_load_state_dict_pre_hooks) == 2, "no hook of ours was left behind"


def test_hooks_see_and_change_what_is_saved() -> None:
    model = network()
    optimizer = ours("adam", model.parameters())
    train(optimizer, model, range(1))
    calls = []
    optimizer.register_state_dict_pre_hook(lambda o: calls.append(o))
    optimizer.register_state_dict_post_hook(lambda o, state_dict: state_dict.update(version=3))
    assert optimizer.state_dict()["version"] == 3 and calls == [optimizer]
    optimizer.register_state_dict_post_hook(lambda o, state_dict: {"optimizer": state_dict})
    assert optimizer.state_dict().keys() == {"optimizer"}


def test_the_dictionaries_of_a_state_dict_are_the_callers() -> None:
    model = network()
    optimizer = ours("adam", model.parameters())
    train(optimizer, model, range(1))
    packed = optimizer.state_dict()
    packed["state"][0].clear()
    packed["param_groups"][0]["lr"] = 5.0
    assert optimizer.state[model[0].weight].keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert optimizer.param_groups[0]["lr"] != 5.0
