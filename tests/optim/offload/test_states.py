"""The states of an optimizer kept on the CPU: state dicts, copies, hooks, and where their memory is."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch

from regkernels import optim
from tests.support import cases
from tests.support.offloading import Pair

BOTH = pytest.mark.parametrize("free", [False, True])


# --- saved, copied, left ---


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_state_dicts_both_ways(free: bool, dtype: torch.dtype) -> None:
    pair = Pair(free=free, dtype=dtype, **cases.STRENGTHS)
    pair.train(2)
    saved = copy.deepcopy(pair.offloaded.state_dict())
    assert all(type(key) is int for key in saved["state"])
    pair.plain.load_state_dict(saved)
    pair.train(2)
    pair.offloaded.load_state_dict(copy.deepcopy(pair.plain.state_dict()))
    pair.train(2)
    assert saved.keys() == pair.plain.state_dict().keys()
    assert saved["param_groups"][0].keys() == pair.plain.state_dict()["param_groups"][0].keys()


def test_state_dicts_of_torch() -> None:
    pair = Pair(lr=0.01, weight_decay=0.1)
    theirs = torch.optim.AdamW(list(pair.models[0].parameters()), lr=0.01, weight_decay=0.1)
    ours = optim.CPUOffload(list(pair.models[1].parameters()), lr=0.5)
    for step in range(4):
        if step == 2:
            ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
            pair.models[1].load_state_dict(pair.models[0].state_dict())
        pair.backward(step)
        theirs.step()
        ours.step()
        for optimizer in (theirs, ours):
            optimizer.zero_grad()
    assert ours.param_groups[0]["lr"] == 0.01
    for mine, other in zip(pair.models[1].parameters(), pair.models[0].parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    theirs.load_state_dict(ours.state_dict())
    assert theirs.state[pair.models[0].scale]["step"] == 4


def test_hooks_of_state_dicts_and_steps() -> None:
    pair = Pair(**cases.STRENGTHS)
    called = []
    pair.offloaded.register_state_dict_post_hook(lambda o, d: called.append("saved") or {**d, "more": 1})
    pair.offloaded.register_load_state_dict_pre_hook(
        lambda o, d: called.append("before") or {k: v for k, v in d.items() if k != "more"}
    )
    pair.offloaded.register_load_state_dict_post_hook(lambda o: called.append("after"))
    pair.offloaded.register_step_pre_hook(lambda o, a, k: called.append("step"))
    pair.train(1)
    saved = pair.offloaded.state_dict()
    assert saved["more"] == 1
    pair.offloaded.load_state_dict(saved)
    assert called == ["step", "saved", "before", "after"]
    pair.train(1)


@pytest.mark.parametrize("what", ["a tensor", "a count", "nothing left", "another dictionary"])
def test_states_that_are_exchanged_are_used(what: str) -> None:
    pair = Pair(**cases.STRENGTHS)
    pair.train(2)
    for model, optimizer in pair.both:
        if what == "a tensor":
            optimizer.state[model.first.weight]["exp_avg"] = torch.full((5, 5), 0.5)
        elif what == "a count":
            optimizer.state[model.scale]["step"].fill_(9)
        elif what == "nothing left":
            del optimizer.state[model.transposed]
        else:
            own = copy.deepcopy(list(vars(optimizer)["state"].values()))
            optimizer.state = dict(zip(vars(optimizer)["state"], own, strict=True))
            own[0]["exp_avg"].fill_(0.5)
    pair.train(2)
    assert pair.offloaded.state[pair.models[1].scale]["step"] == (11 if what == "a count" else 4)


@BOTH
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies(how: str, free: bool) -> None:
    pair = Pair(free=free, max_grad_norm=0.1, skip_nonfinite=True, **cases.STRENGTHS)
    pair.train(2)
    whole = (pair.models[1], pair.offloaded)
    pair.models[1], pair.offloaded = copy.deepcopy(whole) if how == "deepcopy" else pickle.loads(pickle.dumps(whole))
    assert pair.offloaded._free == free
    pair.train(2)


def test_of_two_the_latest_takes_the_gradients_and_one_that_is_gone_takes_none() -> None:
    pair = Pair(free=True, **cases.STRENGTHS)
    first = optim.CPUOffload(pair.models[0].parameters(), free_gradients=True)
    second = optim.CPUOffload(pair.models[0].parameters(), free_gradients=True)
    before = copy.deepcopy(pair.models[0].state_dict())
    pair.backward(0)
    first.step()
    assert all(torch.equal(value, before[name]) for name, value in pair.models[0].state_dict().items())
    second.step()
    assert not torch.equal(pair.models[0].scale, before["scale"])
    gone = [weakref.ref(first), weakref.ref(second)]
    del first, second
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    pair.backward(0)
    assert pair.models[0].scale.grad is not None


def test_everything_but_weights_is_in_memory_of_the_optimizer() -> None:
    pair = Pair(free=True, **cases.STRENGTHS)
    pair.train(2)
    saved = [t for state in pair.offloaded.state.values() for t in state.values()]
    weights = {p.untyped_storage().data_ptr() for p in pair.models[1].parameters()}
    assert not weights & {t.untyped_storage().data_ptr() for t in saved}
