"""What trainers and wrappers do to an optimizer: copies, pickles, exchanged classes, scalers, averages."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import swa_utils

from regkernels import optim
from tests import ROOT
from tests.support.training import assert_equal, assert_near, each_optimizer, network, ours, theirs, train, twins

pytestmark = pytest.mark.usefixtures("one_thread")

REGULARISED = {"l1": 1e-4, "l1_mode": "prox", "weight_decay_mode": "prox"}


@pytest.mark.parametrize("l1_mode", ["prox", "decoupled", "subgradient"])
@pytest.mark.parametrize("weight_decay_mode", ["coupled", "decoupled", "prox"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@each_optimizer
def test_zero_gradients_and_lr_0_create_states_and_move_nothing(
    name: str, dtype: torch.dtype, weight_decay_mode: str, l1_mode: str
) -> None:
    """Distributed checkpoints initialise optimizers this way."""
    weight = torch.tensor([0.0, -0.0, 1e-42, -3.7, torch.nan, torch.inf, -torch.inf, 1e-3], dtype=dtype)
    p = nn.Parameter(weight.clone())
    modes = {"l1": 0.5, "l1_mode": l1_mode, "weight_decay": 0.5, "weight_decay_mode": weight_decay_mode}
    p.grad = torch.zeros_like(p)
    optimizer = ours(name, [p], **modes, lr=0.0)
    optimizer.step(closure=None)
    assert p.detach().view(torch.uint8).equal(weight.view(torch.uint8))
    q = nn.Parameter(torch.zeros_like(weight))
    q.grad = torch.zeros_like(q)
    reference = theirs(name, [q], lr=0.0)
    reference.step()
    assert optimizer.state[p].keys() == reference.state[q].keys()


def _through_another_process(pair: Any, tmp_path: Path) -> Any:
    """As with multiprocessing's spawn: unpickled, continued and pickled by a process that starts from nothing."""
    path = tmp_path / "pair.pickle"
    path.write_bytes(pickle.dumps(pair))
    code = (
        "import pickle, sys; sys.path.insert(0, sys.argv[2]); from tests.support.training import train\n"
        "model, optimizer = pickle.load(open(sys.argv[1], 'rb'))\n"
        "train(optimizer, model, range(3, 5)); pickle.dump((model, optimizer), open(sys.argv[1], 'wb'))"
    )
    subprocess.run([sys.executable, "-c", code, str(path), str(ROOT)], check=True)
    return pickle.loads(path.read_bytes())


COPIES = {
    "deepcopy": copy.deepcopy,
    **{f"pickle {n}": lambda pair, n=n: pickle.loads(pickle.dumps(pair, protocol=n)) for n in range(2, 6)},
}


@pytest.mark.parametrize("way", COPIES)
@each_optimizer
def test_copies_continue_identically(name: str, way: str) -> None:
    model = network(torch.float32)
    optimizer = ours(name, model.parameters(), **REGULARISED, stats=True, max_grad_norm=0.01)
    train(optimizer, model, range(3))
    other, copied = COPIES[way]((model, optimizer))
    assert_equal(model, other)
    for net, steps in ((model, optimizer), (other, copied)):
        train(steps, net, range(3, 6))
    assert_equal(model, other)
    assert type(copied) is type(optimizer) and copied.stats is not None
    assert all(torch.equal(a, b) for a, b in zip(optimizer.stats, copied.stats, strict=True))
    assert optimizer.stats.grad_norm > 0.01, "clipping took part"
    train(copied, other, range(6, 8))  # and are independent of each other
    assert not torch.equal(model[0].weight, other[0].weight)


@each_optimizer
def test_a_shallow_copy_shares_the_states(name: str) -> None:
    """As in torch: the two may take turns."""
    model, other = twins(network())
    for make, net in ((ours, model), (theirs, other)):
        optimizer = make(name, net.parameters())
        train(optimizer, net, range(2))
        copied = copy.copy(optimizer)
        for step in range(2, 8):
            train((optimizer, copied)[step // 2 % 2], net, [step])
    assert_near(model, other)


def test_a_pickle_continues_in_another_process(tmp_path: Path) -> None:
    model = network(torch.float32)
    optimizer = ours("adamw", model.parameters(), **REGULARISED, stats=True, max_grad_norm=0.01)
    train(optimizer, model, range(3))
    other, copied = _through_another_process((model, optimizer), tmp_path)
    train(optimizer, model, range(3, 7))
    train(copied, other, range(5, 7))
    assert_equal(model, other)


class _Dictionary:
    """What PyTorch Lightning's LightningOptimizer was: a new object that shares the attributes."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.__dict__ = {key: value for key, value in optimizer.__dict__.items() if key not in ("step", "__del__")}
        self.__class__ = type("Lightning" + type(optimizer).__name__, (type(self), type(optimizer)), {})
        self._optimizer = optimizer

    def step(self, closure: Any = None) -> Any:
        return self._optimizer.step(closure)


class _Delegate:
    """What LightningOptimizer and Fabric's wrapper are: they look like the optimizer and pass attributes on."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self.__class__ = type("Fabric" + type(optimizer).__name__, (type(self), type(optimizer)), {})

    def step(self, closure: Any = None) -> Any:
        return self._optimizer.step(closure)

    def __getattr__(self, item: str) -> Any:
        return getattr(self._optimizer, item)


@pytest.mark.parametrize("wrapper", [_Dictionary, _Delegate])
@each_optimizer
def test_wrappers_of_frameworks(name: str, wrapper: type) -> None:
    model, other = twins(network())
    a, b = ours(name, model.parameters(), stats=True), theirs(name, other.parameters())
    wrapped = wrapper(a)
    assert isinstance(wrapped, (optim.Optimizer, type(a)))
    for step in range(6):
        train(wrapped, model, range(step, step + 1))
        train(b, other, range(step, step + 1))
        if step == 2:  # an edit of a state through the wrapper must reach the next step
            for state in [*wrapped.state.values(), *b.state.values()]:
                state.update({key: value * 0.5 for key, value in state.items() if key != "step"})
    assert wrapped.state is a.state and wrapped.param_groups is a.param_groups and wrapped.defaults is a.defaults
    assert wrapped.state_dict()["param_groups"] == a.state_dict()["param_groups"]
    wrapped.zero_grad()
    assert all(param.grad is None for param in model.parameters())
    assert_near(model, other)


@each_optimizer
def test_class_can_be_exchanged(name: str) -> None:
    model, other = twins(network())
    a, b = ours(name, model.parameters()), theirs(name, other.parameters())
    train(a, model, range(2))
    a.__class__ = type("Subclass", (type(a),), {"added": lambda self: "method"})
    assert a.added() == "method"
    a.attribute = "of the instance"
    train(a, model, range(2, 5))
    train(b, other, range(5))
    assert_near(model, other)
    assert not any("__slots__" in vars(base) for base in type(a).__mro__ if base.__module__.startswith("regkernels"))


def test_scaler_finds_no_half_support() -> None:
    """Lightning refuses to clip where this attribute is true; GradScaler's default path needs nothing of it."""
    assert not getattr(ours("adamw", network().parameters()), "_step_supports_amp_scaling", False)


@each_optimizer
def test_grad_scaler(name: str) -> None:
    """Scales of 2^k change no bits; a step with an infinite gradient is skipped as a whole."""
    model, other = twins(network(torch.float32))
    a, b = ours(name, model.parameters()), ours(name, other.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    for step in range(6):
        a.zero_grad()
        x = torch.sin(torch.arange(20.0).view(4, 5) + step)
        scaler.scale((model(x) ** 2).mean()).backward()
        if step == 3:
            model[0].weight.grad[0, 0] = torch.inf
        scaler.step(a)
        scaler.update()
        if step != 3:
            b.zero_grad()
            (other(x) ** 2).mean().backward()
            b.step()
        assert_equal(model, other)
    assert all(state.get("step", 5) == 5 for state in a.state.values())


@each_optimizer
def test_averaged_model(name: str) -> None:
    averages = []
    for make, net in zip((ours, theirs), twins(network()), strict=True):
        optimizer, average = make(name, net.parameters()), swa_utils.AveragedModel(net)
        scheduler = swa_utils.SWALR(optimizer, swa_lr=0.01, anneal_epochs=3)
        train(optimizer, net, range(6), lambda a=average, n=net: a.update_parameters(n), scheduler.step)
        averages.append(average)
    assert_near(*averages)


@each_optimizer
def test_tensors_may_be_swapped(name: str) -> None:
    """How modules are converted with torch.__future__.set_swap_module_params_on_conversion, and by quantisers."""
    model, other = twins(network(torch.float32))
    for make, net in ((ours, model), (theirs, other)):
        optimizer = make(name, net.parameters())
        train(optimizer, net, range(3))
        optimizer.zero_grad()
        for param in net.parameters():
            torch.utils.swap_tensors(param, nn.Parameter(param.detach() * 0.5))
        train(optimizer, net, range(3, 6))
    assert_near(model, other, 1e-5)
