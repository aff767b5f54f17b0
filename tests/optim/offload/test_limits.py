"""What `CPUOffload` refuses, before anything is changed, and what it costs."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import regkernels
from regkernels import optim
from regkernels.optim.offload import pinned
from tests.support import cases
from tests.support.offloading import Pair


def params() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(4))]


def flat() -> list[nn.Parameter]:
    own = params()
    regkernels.FlatParameters(own)
    return own


def sharing() -> list[nn.Parameter]:
    base = torch.ones(6)
    return [nn.Parameter(base[:4]), nn.Parameter(base[2:])]


REFUSED: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    "another library": (
        TypeError,
        "optimizer_class must be a class of regkernels.optim.* got <class 'torch.optim.adamw.AdamW'>",
        lambda: optim.CPUOffload(params(), torch.optim.AdamW),
    ),
    "an instance": (
        TypeError,
        "optimizer_class must be a class",
        lambda: optim.CPUOffload(params(), optim.AdamW(params())),
    ),
    "itself": (TypeError, "optimizer_class must be a class", lambda: optim.CPUOffload(params(), optim.CPUOffload)),
    "free_gradients": (
        TypeError,
        "free_gradients must be True or False, got 1",
        lambda: optim.CPUOffload(params(), free_gradients=1),
    ),
    "capturable": (
        ValueError,
        "capturable=True cannot be had with CPUOffload",
        lambda: optim.CPUOffload(params(), capturable=True),
    ),
    "capturable group": (
        ValueError,
        "capturable=True cannot be had with CPUOffload",
        lambda: optim.CPUOffload([{"params": params(), "capturable": True}]),
    ),
    "amp_scaling": (
        ValueError,
        "amp_scaling=True cannot be had with free_gradients=True",
        lambda: optim.CPUOffload(params(), amp_scaling=True, free_gradients=True),
    ),
    "flat": (
        ValueError,
        "parameter 0 of param group 0 belongs to a FlatParameters",
        lambda: optim.CPUOffload(flat()),
    ),
    "shared memory": (
        ValueError,
        "parameter 0 of param group 0 .* parameter 1 of param group 0 share memory",
        lambda: optim.CPUOffload(sharing()),
    ),
    "expanded": (
        ValueError,
        r"parameter 0 of param group 0 \(w\) is expanded",
        lambda: optim.CPUOffload([("w", nn.Parameter(torch.ones(1).expand(3)))]),
    ),
    "integers": (
        TypeError,
        "parameter 0 of param group 0 has dtype torch.int64",
        lambda: optim.CPUOffload([torch.ones(3, dtype=torch.int64)]),
    ),
    "twice": (
        ValueError,
        "duplicate parameters|more than one parameter group|may be passed once",
        lambda: optim.CPUOffload([{"params": (own := params())}, {"params": own[:1]}]),
    ),
    "a tensor": (TypeError, "params must be an iterable of tensors", lambda: optim.CPUOffload(params()[0])),
    "a module": (TypeError, "params must be an iterable .* got a Linear", lambda: optim.CPUOffload(nn.Linear(2, 2))),
    "a set": (TypeError, "ordered collection", lambda: optim.CPUOffload([{"params": set(params())}])),
    "no tensors": (TypeError, "can only optimize Tensors", lambda: optim.CPUOffload([1.0])),
    "nothing": (ValueError, "empty parameter list", lambda: optim.CPUOffload([])),
    "no leaf": (ValueError, "non-leaf", lambda: optim.CPUOffload([params()[0] * 2])),
    "options": (TypeError, "AdamW has no argument 'l3'", lambda: optim.CPUOffload(params(), l3=1.0)),
    "values": (ValueError, "l1 must be >= 0, got -1", lambda: optim.CPUOffload(params(), l1=-1.0)),
    "positions": (TypeError, "positional", lambda: optim.CPUOffload(params(), optim.AdamW, 1e-3)),
    "step_in_backward": (
        TypeError,
        "CPUOffload.* free_gradients=True",
        lambda: optim.step_in_backward(optim.CPUOffload(params())),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    kind, message, make = REFUSED[name]
    with pytest.raises(kind, match=message):
        make()


def test_a_refused_optimizer_leaves_gradients_alone() -> None:
    own = params()
    with pytest.raises(ValueError, match="l1 must be"):
        optim.CPUOffload(own, free_gradients=True, l1=-1.0)
    (own[0].sum() + own[1].sum()).backward()
    assert all(param.grad is not None for param in own)


LATE: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "options of a group": (
        r"lr must be >= 0, got -1.0 \(param group 0\)",
        lambda model, optimizer: optimizer.param_groups[0].update(lr=-1.0),
    ),
    "capturable": (
        "capturable=True cannot be had with CPUOffload",
        lambda model, optimizer: optimizer.param_groups[0].update(capturable=True),
    ),
    "a gradient": (
        "the gradient of parameter 1 of param group 1 has layout torch.sparse_coo",
        lambda model, optimizer: setattr(model.first.weight, "grad", torch.ones(5, 5).to_sparse()),
    ),
    "a late group": (
        "l1 must be >= 0, got -1.0",
        lambda model, optimizer: optimizer.add_param_group({"params": params(), "l1": -1.0}),
    ),
    "a late parameter": (
        "more than one parameter group",
        lambda model, optimizer: optimizer.add_param_group({"params": [model.first.weight]}),
    ),
    "no leaf": (
        "non-leaf",
        lambda model, optimizer: optimizer.add_param_group({"params": [model.first.weight * 2]}),
    ),
    "a state dict": (
        "another number of parameter groups: 0",
        lambda model, optimizer: optimizer.load_state_dict({"state": {}, "param_groups": []}),
    ),
    "the state of another": (
        "lacks|was saved by another",
        lambda model, optimizer: optimizer.load_state_dict(
            {**optimizer.state_dict(), "state": {0: {"sum": torch.ones(5, 3)}}}
        ),
    ),
}


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("what", LATE)
def test_what_is_refused_later_changes_nothing(what: str, free: bool) -> None:
    pair = Pair(free=free, max_grad_norm=0.1, **cases.STRENGTHS)
    pair.train(2)
    pair.zero_grad()
    pair.backward(2)
    model, optimizer = pair.models[1], pair.offloaded
    weights, saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    groups = [dict(group) for group in optimizer.param_groups]
    grad = model.first.weight.grad
    message, change = LATE[what]

    def change_and_step() -> None:
        change(model, optimizer)
        optimizer.step()

    with pytest.raises((ValueError, RuntimeError, TypeError), match=message):
        change_and_step()
    model.first.weight.grad = grad
    for group, own in zip(optimizer.param_groups, groups, strict=True):
        group.update(own)
    now = optimizer.state_dict()
    torch.testing.assert_close((model.state_dict(), now["state"]), (weights, saved["state"]), rtol=0, atol=0)
    assert now["param_groups"] == saved["param_groups"]
    pair.step()
    pair.train(2)


@pytest.mark.parametrize("free", [False, True])
def test_a_state_dict_without_states_is_refused_where_gradients_have_prevented_them(free: bool) -> None:
    """As for the plain optimizer: torch.distributed.checkpoint makes none then. On the device there are none any more."""
    pair = Pair(free=free, **cases.STRENGTHS)
    pair.train(1)
    saved = pair.plain.state_dict()
    saved["state"] = {}
    for group in saved["param_groups"]:
        group["params"] = [f"name {i}" for i in group["params"]]
    pair.models[1].zero_grad()
    pair.offloaded.load_state_dict(copy.deepcopy(saved))
    pair.backward(1)
    with pytest.raises(ValueError, match="no state for any parameter"):
        pair.plain.load_state_dict(copy.deepcopy(saved))
    if free:
        return
    pair.offloaded.step()
    with pytest.raises(ValueError, match="no state for any parameter"):
        pair.offloaded.load_state_dict(copy.deepcopy(saved))


def test_gradients_of_several_processes_are_left_to_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are complete after they have been reduced, which is later than the hook of the parameter."""
    pair = Pair(free=True, **cases.STRENGTHS)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    for step in range(2):
        pair.zero_grad()
        pair.backward(step)
        for model in pair.models:
            for param in model.parameters():
                if param.grad is not None:
                    param.grad.mul_(0.5)  # as an average over processes would
        pair.step(step)
        assert pair.models[1].scale.grad is None


def test_only_what_was_updated_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []
    for name in ("send", "fetch"):
        original = getattr(pinned.Lane, name)

        def counted(self: Any, source: Any, target: Any, *, name: str = name, original: Any = original) -> Any:
            moved.append((name, source.nbytes))
            return original(self, source, target)

        monkeypatch.setattr(pinned.Lane, name, counted)
    for free in (False, True):
        pair = Pair(free=free, **cases.STRENGTHS)
        pair.train(2)
        moved.clear()
        pair.train(1)
        trained = sum(p.nbytes for p in pair.models[1].parameters() if p in pair.offloaded.state)
        for name in ("send", "fetch"):
            assert sum(size for what, size in moved if what == name) == trained > 0


def test_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinned, "CHUNK_BYTES", 1000)
    dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.complex64]
    wanted = [torch.randn(n, 3).to(dtype) for n in (0, 1, 7, 16, 200, 5) for dtype in dtypes]
    wanted += [torch.ones(()), torch.randn(4, 6).t(), torch.randn(4, 6)[:, ::2]]
    made = pinned.allocate(wanted, pinned=False)
    for tensor, like in zip(made, wanted, strict=True):
        assert tensor.shape == like.shape and tensor.dtype == like.dtype
        tensor.fill_(1)
        assert tensor.data_ptr() % 64 == 0
    runs = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in made if t.numel())
    assert all(end < begin for (_, end), (begin, _) in itertools.pairwise(runs)), "adjacent, or worse"
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in made}
    assert 5 < len(sizes) < len(made)
    assert made[-2].stride() == (1, 6) and made[-1].is_contiguous()
