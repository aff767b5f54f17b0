"""State dicts that do not fit: what is said, and that the optimizer is and trains as if they had not been loaded."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from regkernels import FlatParameters, optim
from tests.optim.checkpoint.cases import assert_identical, snapshot
from tests.optim.checkpoint.edits import Packed, by_name, saved, swapped
from tests.optim.checkpoint.refused import REFUSED
from tests.support.training import network, train

OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": 0.02, "l1": 1e-3}),
    "momentum": ("SGD", {"lr": 0.02, "momentum": 0.9, "l1": 1e-3}),
    "adam": ("Adam", {"lr": 0.02, "l1": 1e-3, "stats": True, "max_grad_norm": 0.1}),
    "amsgrad": ("Adam", {"lr": 0.02, "amsgrad": True}),
    "rmsprop": ("RMSprop", {"lr": 0.02, "centered": True}),
    "lion": ("Lion", {"lr": 0.02}),
}


@pytest.mark.parametrize("flat", [False, True], ids=["", "flat"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_and_nothing_changes(case: str, flat: bool) -> None:
    name, change, error, message = REFUSED[case]
    kind, options = OPTIMIZERS[name]
    model = network(torch.float32)
    if flat:
        FlatParameters(model)
    other = copy.deepcopy(model)
    optimizer = getattr(optim, kind)(by_name(model), **options)
    untouched = getattr(optim, kind)(by_name(other), **options)
    for steps, net in ((optimizer, model), (untouched, other)):
        train(steps, net, range(3))
    before = snapshot(optimizer.state_dict())
    places = [value.data_ptr() for state in optimizer.state_dict()["state"].values() for value in state.values()]
    stats = getattr(optimizer, "stats", None)
    given = change(copy.deepcopy(before))
    kept = snapshot(given)
    with pytest.raises(error, match=f"(?s){message}"):
        optimizer.load_state_dict(given)
    assert_identical(snapshot(optimizer.state_dict()), before)
    assert places == [
        value.data_ptr() for state in optimizer.state_dict()["state"].values() for value in state.values()
    ], "no state has moved"
    if stats is not None:
        assert_identical(list(optimizer.stats), list(stats))
    assert repr(given) == repr(kept), "what was given is not changed either"
    assert not optimizer._optimizer_load_state_dict_pre_hooks
    for steps, net in ((optimizer, model), (untouched, other)):
        train(steps, net, range(3, 6))
    assert_identical(optimizer.state_dict(), untouched.state_dict())
    assert_identical(dict(model.state_dict()), dict(other.state_dict()))
    optimizer.load_state_dict(before)
    assert_identical(optimizer.state_dict()["state"], before["state"])


def test_the_users_hooks_come_first() -> None:
    """They may make a dict fit; what they leave is what is checked."""
    model = network(torch.float32)
    optimizer = optim.Adam(by_name(model))
    train(optimizer, model, range(2))
    good = snapshot(optimizer.state_dict())
    broken = swapped(snapshot(good))

    def repair(o: Any, state_dict: Packed) -> Packed:
        return swapped(snapshot(state_dict))

    def no_fit(o: Any, state_dict: Packed) -> None:
        state_dict["param_groups"] = state_dict["param_groups"][:1]

    hook = optimizer.register_load_state_dict_pre_hook(repair)
    optimizer.load_state_dict(broken)
    assert_identical(snapshot(optimizer.state_dict()), good)
    optimizer.register_load_state_dict_pre_hook(no_fit)
    with pytest.raises(ValueError, match="another number of parameter groups"):
        optimizer.load_state_dict(broken)
    hook.remove()
    assert_identical(snapshot(optimizer.state_dict()), good)


def test_a_dict_that_fits_after_a_refusal_is_loaded_as_if_it_had_been_the_first() -> None:
    models = [network(torch.bfloat16) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    good = saved("Adam", copy.deepcopy(models[0]))
    results = []
    for model, tries in zip(models, ([{}, good], [good]), strict=True):
        optimizer = optim.Adam(by_name(model))
        for packed in tries:
            if packed:
                optimizer.load_state_dict(packed)
            else:
                with pytest.raises(ValueError):
                    optimizer.load_state_dict(packed)
        train(optimizer, model, range(4))
        results.append(snapshot({**optimizer.state_dict(), "model": dict(model.state_dict())}))
    assert_identical(*results)
