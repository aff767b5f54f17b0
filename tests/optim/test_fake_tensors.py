"""Optimizers, penalties and the rest under FakeTensorMode, as estimates of memory use them: torch's shapes and types, nothing computed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import FakeTensor

import regkernels as rk
from regkernels import optim, prox

pytestmark = pytest.mark.filterwarnings("error:Accessing the data pointer of FakeTensor")

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: optim.SGD(p, lr=0.1),
    "momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, l1=0.1),
    "Adam": lambda p: optim.Adam(p, l1=0.1, max_grad_norm=1.0),
    "AdamW": lambda p: optim.AdamW(p, stats=True),
    "RAdam": lambda p: optim.RAdam(p),
    "RMSprop": lambda p: optim.RMSprop(p, momentum=0.9, centered=True),
    "Adagrad": lambda p: optim.Adagrad(p),
    "Lion": lambda p: optim.Lion(p, l1=0.1, l1_mode="decoupled"),
}


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2), nn.Linear(2, 2, dtype=torch.float64))


def train(make: Callable[[Any], torch.optim.Optimizer]) -> torch.optim.Optimizer:
    own = model()
    optimizer = make(own.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        hidden = own[:3](torch.ones(5, 4))
        (own[3](hidden.double()).square().mean() + rk.elastic_net_penalty(own, 0.1, 0.2)).backward()
        optimizer.step()
    return optimizer


def described(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    params = optimizer.param_groups[0]["params"]
    return [
        {key: (value.shape, value.dtype, value.stride()) for key, value in optimizer.state[param].items()}
        for param in params
    ]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_are_those_of_a_real_run(name: str) -> None:
    with FakeTensorMode():
        optimizer = train(OPTIMIZERS[name])
    assert all(isinstance(value, FakeTensor) for state in optimizer.state.values() for value in state.values())
    assert described(optimizer) == described(train(OPTIMIZERS[name]))


def test_states_of_torch() -> None:
    with FakeTensorMode():
        ours, theirs = train(OPTIMIZERS["Adam"]), train(torch.optim.Adam)
    assert described(ours) == described(theirs)


def test_rounded_weights() -> None:
    with FakeTensorMode():
        weight = nn.Parameter(torch.ones(3, 2, dtype=torch.bfloat16))
        weight.grad = torch.ones_like(weight)
        optimizer = optim.AdamW([weight], param_rounding="remainder", state_dtype=torch.bfloat16)
        optimizer.step()
        states = optimizer.state[weight]
        assert {key: value.dtype for key, value in states.items()} == {
            "step": torch.float64,
            "exp_avg": torch.bfloat16,
            "exp_avg_sq": torch.bfloat16,
            "remainder": torch.int16,
        }
        before = dict(states)
        optimizer.step()
        assert all(states[key] is before[key] for key in before)
        frozen = nn.Parameter(torch.ones(3))
        optimizer.add_param_group({"params": [frozen]})
        optimizer.step()
        assert frozen not in optimizer.state


def test_on_a_device_that_is_not_there() -> None:
    with FakeTensorMode(), torch.device("cuda"):
        weight = nn.Parameter(torch.empty(3, 2))
        weight.grad = torch.empty(3, 2)
        for make in OPTIMIZERS.values():
            make([weight]).step()


@pytest.mark.parametrize("theirs", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
def test_attach_prox(theirs: Any) -> None:
    def make(params: Any) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = theirs(params, lr=0.1)
        rk.attach_prox(optimizer, l1=0.1)
        return optimizer

    with FakeTensorMode():
        train(make)


def test_flat_parameters() -> None:
    with FakeTensorMode():
        own = model()
        flat = rk.FlatParameters(own)
        optimizer = optim.Adam(own.parameters())
        optimizer.zero_grad()
        optimizer.step()
        assert sum(weights.nbytes for weights in flat.weights) == sum(p.nbytes for p in own.parameters())
        assert optimizer.state[own[0].weight]["exp_avg"].shape == (3, 4)


VALUES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": lambda x, y: rk.l1_penalty([x, y], 0.1),
    "strength": lambda x, y: rk.l1_penalty([x, y], y.sum()),
    "weighted": lambda x, y: rk.l1_penalty([x], 0.1, [torch.ones(3, 4)]),
    "scad": lambda x, y: rk.scad_penalty([x, y], y.sum()),
    "groups": lambda x, y: rk.group_l1_penalty([x, y], 0.1),
    "prox": lambda x, y: prox.soft_threshold(x, 0.1).sum(),
    "in place": lambda x, y: prox.soft_threshold_(x * 1, 0.1).sum() if not x.requires_grad else x.sum(),
    "weighted prox": lambda x, y: prox.weighted_l1(x, 0.1, torch.ones(3, 4)).sum(),
    "l_half": lambda x, y: prox.l_half(x, 0.1).sum(),
    "unit_norm": lambda x, y: prox.unit_norm(x).sum(),
}


@pytest.mark.parametrize("name", VALUES)
def test_values(name: str) -> None:
    with FakeTensorMode():
        for device in ("cpu", "cuda"):  # for whose graph torch needs one
            with torch.device(device):
                x, y = (torch.ones(size, requires_grad=device == "cpu") for size in ((3, 4), (3,)))
                value = VALUES[name](x, y)
                assert isinstance(value, FakeTensor) and value.shape == () and value.device.type == device
                if device == "cpu":
                    value.backward()
                    assert x.grad is not None and x.grad.shape == x.shape


def test_two_tensors_on_the_meta_device_both_get_gradients() -> None:
    x, y = (torch.ones(3, device="meta", requires_grad=True) for _ in range(2))
    rk.l2_penalty([x, y], 0.1).backward()
    assert x.grad is not None and y.grad is not None


# --- refused ---


def test_fake_and_real_in_one_step() -> None:
    real = nn.Parameter(torch.ones(2))
    real.grad = torch.ones(2)
    with FakeTensorMode() as mode:
        fake = nn.Parameter(torch.ones(2))
        fake.grad = torch.ones(2)
    for make in OPTIMIZERS.values():
        with pytest.raises(
            RuntimeError, match=r"parameter 1 of param group 0 is a FakeTensor and parameter 0 .* has values"
        ):
            make([real, fake]).step()
        with mode, pytest.raises(RuntimeError, match=r"FakeTensorMode is active, and parameter 0 .* has values"):
            make([real]).step()
    assert real.tolist() == [1.0, 1.0]
    optim.SGD([fake], momentum=0.9).step()  # outside of the mode


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_tensors_of_transforms(name: str) -> None:
    make = OPTIMIZERS[name]

    def of_parameters(x: Tensor) -> Tensor:
        make([x])
        return x

    def of_gradients(x: Tensor) -> Tensor:
        weight = nn.Parameter(torch.ones(2))
        weight.grad = x.detach()
        make([weight]).step()
        return x

    for transform in (torch.vmap, lambda f: torch.func.grad(lambda x: f(x).sum())):
        with pytest.raises(TypeError, match=r"parameter 0 of param group 0 belongs to a transform of torch\.func"):
            transform(of_parameters)(torch.ones(3, 2))
    with pytest.raises(RuntimeError, match=r"gradient of parameter 0 .* belongs to a transform .*outside of it"):
        torch.vmap(of_gradients)(torch.ones(3, 2))


def test_no_warning_is_hidden() -> None:
    with FakeTensorMode(), warnings.catch_warnings():
        warnings.simplefilter("error")
        x = torch.ones(3)
        rk.l1_penalty([x, x * 2], 0.1)
