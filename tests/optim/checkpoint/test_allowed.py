"""State dicts that look odd and have to be loaded all the same."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import nn

from regkernels import optim
from tests.optim.checkpoint.cases import (
    OPTIMIZERS,
    PRECISIONS,
    Model,
    Packed,
    assert_identical,
    ours,
    snapshot,
    through_a_file,
    train,
)


def _other_names(packed: Packed) -> None:
    for group in packed["param_groups"]:
        group["param_names"] = [f"backbone.{name}" for name in group["param_names"]]


def _compiled(packed: Packed) -> None:
    for group in packed["param_groups"]:
        group["param_names"] = [f"module._orig_mod.{name}" for name in group["param_names"]]


def _no_names(packed: Packed) -> None:
    for group in packed["param_groups"]:
        del group["param_names"]


def _strings_as_ids(packed: Packed) -> None:
    """As torch.distributed.checkpoint and FSDP make them."""
    names = [name for group in packed["param_groups"] for name in group["param_names"]]
    packed["state"] = {names[key]: state for key, state in packed["state"].items()}
    for group in packed["param_groups"]:
        group["params"] = list(group["param_names"])


def _other_integers(packed: Packed) -> None:
    packed["state"] = {key + 10: state for key, state in packed["state"].items()}
    for group in packed["param_groups"]:
        group["params"] = [key + 10 for key in group["params"]]


def _strangers(packed: Packed) -> None:
    packed["state"]["of the whole run"] = {"tokens": 3}
    packed["state"][99] = torch.ones(2)
    packed["param_groups"][0]["initial_lr"] = 0.5
    packed["version"] = 2


def _fewer_options(packed: Packed) -> None:
    packed["param_groups"] = [{"params": g["params"], "lr": g["lr"]} for g in packed["param_groups"]]


def _lists_for_tuples(packed: Packed) -> None:
    for group in packed["param_groups"]:
        group.update(json.loads(json.dumps({key: value for key, value in group.items() if key != "params"})))


def _wider(packed: Packed) -> None:
    for state in packed["state"].values():
        state.update({key: value.double() for key, value in state.items()})


def _transposed(packed: Packed) -> None:
    """In another layout, of a storage that begins elsewhere and holds more."""
    for state in packed["state"].values():
        for key, value in state.items():
            if value.dim() == 2:
                state[key] = torch.cat([value.t(), value.t()])[: value.size(1)].t()


def _integers_as_steps(packed: Packed) -> None:
    for state in packed["state"].values():
        if "step" in state:
            state["step"] = int(state["step"])


def _ordered(packed: Packed) -> None:
    packed["state"] = OrderedDict(reversed(packed["state"].items()))


CHANGES: list[Callable[[Packed], None]] = [
    _other_names,
    _compiled,
    _no_names,
    _strings_as_ids,
    _other_integers,
    _strangers,
    _fewer_options,
    _lists_for_tuples,
    _wider,
    _transposed,
    _integers_as_steps,
    _ordered,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_bit_for_bit(name: str, change: Callable[[Packed], None]) -> None:
    kind, options = OPTIMIZERS[name]
    results = []
    for how in (None, change):
        torch.manual_seed(0)
        model = Model(torch.float32)
        optimizer = getattr(optim, kind)(model.named_parameters(), lr=0.02, l1=1e-3, **options)
        train(optimizer, model, range(4))  # some parameters have no state yet
        packed = snapshot(optimizer.state_dict())
        if how is not None:
            how(packed)
        optimizer = getattr(optim, kind)(model.named_parameters(), lr=0.02, l1=1e-3, **options)
        optimizer.load_state_dict(packed)
        train(optimizer, model, range(4, 12))
        states = [optimizer.state[param] for param in model.parameters()]
        results.append(snapshot([states, list(model.parameters())]))
    assert_identical(*results)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_states_that_nobody_knows_are_carried_along(precision: str) -> None:
    dtype, options = PRECISIONS[precision]
    model = Model(dtype)
    optimizer = ours("adam", model, **options)
    train(optimizer, model, range(2))
    mine = {
        "hessian": torch.rand(3),
        "seen": torch.tensor([3, 4]),
        "flag": True,
        "note": "text",
        "nested": {"a": [1, 2]},
    }
    packed = snapshot(optimizer.state_dict())
    packed["state"][0].update(mine)
    packed["state"][3] = dict(mine)  # nothing but these: the optimizer's own states are made in the next step
    other = ours("adam", model, **options)
    other.load_state_dict(through_a_file(packed))
    train(other, model, range(2, 10))
    saved = other.state_dict()["state"]
    for key in (0, 3):
        assert saved[key].keys() >= {"step", "exp_avg", "exp_avg_sq"}
        for name in ("seen", "flag", "note", "nested"):
            assert_identical(saved[key][name], mine[name], name)
        torch.testing.assert_close(saved[key]["hessian"].float(), mine["hessian"], rtol=0, atol=0)


def test_a_model_without_shapes_yet() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))
    optimizer = optim.Adam(model.parameters())
    packed = snapshot(optimizer.state_dict())
    packed["state"] = {
        0: {"step": 3, "exp_avg": torch.full((3, 5), 0.25), "exp_avg_sq": torch.full((3, 5), 0.5)},
    }
    optimizer.load_state_dict(packed)
    model(torch.ones(4, 5)).sum().backward()
    optimizer.step()
    assert optimizer.state[model[0].weight]["step"] == 4


def test_a_complex_parameter() -> None:
    param = nn.Parameter(torch.randn(3, dtype=torch.complex64))
    optimizer = optim.Adam([param])
    param.grad = torch.ones_like(param)
    optimizer.step()
    packed = snapshot(optimizer.state_dict())
    optimizer.load_state_dict(packed)
    assert_identical(snapshot(optimizer.state_dict()), packed)
    packed["state"][0]["exp_avg_sq"] = packed["state"][0]["exp_avg_sq"].real
    with pytest.raises(TypeError, match=r"dtype torch.float32; for a torch.complex64 parameter.*a complex type"):
        optimizer.load_state_dict(packed)
    packed["state"][0].clear()
    packed["param_groups"][0]["l1"] = 0.5
    with pytest.raises(ValueError, match=r"complex and its l1 is 0\.5"):
        optimizer.load_state_dict(packed)
