"""What somebody does to a tensor of a state dict, or of the states: the step uses the tensor as it now is, or says why it cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regkernels import optim

pytestmark = pytest.mark.usefixtures("one_thread")


def by_data(state: Tensor, value: Tensor) -> None:
    state.data = value.clone()


def by_set(state: Tensor, value: Tensor) -> None:
    state.set_(value.clone())


def by_swap(state: Tensor, value: Tensor) -> None:
    torch.utils.swap_tensors(state, value.clone())


def transposed(state: Tensor, value: Tensor) -> None:
    """At the same address, with other strides."""
    state.data.copy_(value.t().reshape(value.shape))
    state.data = state.data.reshape(value.shape[::-1]).t()


def by_copy(state: Tensor, value: Tensor) -> None:
    state.copy_(value)


EXCHANGES = [by_data, by_set, by_swap, transposed, by_copy]


@pytest.mark.parametrize("source", ["state dict", "states"])
@pytest.mark.parametrize("exchange", EXCHANGES, ids=lambda f: f.__name__)
def test_memory_exchanged_under_a_state(exchange: Callable[[Tensor, Tensor], None], source: str) -> None:
    param, other = (nn.Parameter(torch.arange(6.0).reshape(2, 3)) for _ in range(2))
    optimizers = [optim.SGD([param], lr=0.5, momentum=0.5), torch.optim.SGD([other], lr=0.5, momentum=0.5)]
    value = torch.tensor([[1.0, -2.0, 4.0], [0.5, 8.0, -1.0]])
    handed: list[Tensor] = []
    for round_ in range(4):
        for p, optimizer in zip((param, other), optimizers, strict=True):
            p.grad = torch.ones(2, 3)
            optimizer.step()
            if round_ == 1:
                state = optimizer.state_dict()["state"][0] if source == "state dict" else optimizer.state[p]
                handed.append(state["momentum_buffer"])
            if round_ == 2:
                exchange(handed[-2 if p is param else -1], value)
        assert torch.equal(param, other), round_
    if exchange is transposed:  # a kernel cannot use that where it lies
        handed[0] = optimizers[0].state[param]["momentum_buffer"]
    assert torch.equal(handed[0], handed[1]), "it is the optimizer's own still"


def test_another_type_under_a_state() -> None:
    param = nn.Parameter(torch.zeros(4))
    optimizer = optim.SGD([param], lr=1.0, momentum=0.5)
    param.grad = torch.ones(4)
    optimizer.step()
    (state,) = optimizer.state_dict()["state"].values()
    state["momentum_buffer"].data = torch.full((4,), 4.0, dtype=torch.float64)
    optimizer.step()
    assert torch.equal(param, torch.full((4,), -1.0 - (0.5 * 4 + 1)))


@pytest.mark.parametrize("size", [4, 400_000])
def test_a_storage_that_is_freed(size: int) -> None:
    """Where torch lets anybody free it."""
    param = nn.Parameter(torch.zeros(size))
    optimizer = optim.SGD([param], lr=1.0, momentum=0.5)
    buffer = torch.ones(size)
    optimizer.state[param]["momentum_buffer"] = buffer
    param.grad = torch.ones(size)
    optimizer.step()
    before = param.detach().clone()
    kept = optimizer.state_dict()["state"][0]["momentum_buffer"].clone()
    storage = optimizer.state_dict()["state"][0]["momentum_buffer"].untyped_storage()
    bytes_ = storage.nbytes()
    storage.resize_(0)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"'momentum_buffer' of parameter 0.*has no memory.*It was freed"):
            optimizer.step()
    assert torch.equal(param, before)
    storage.resize_(bytes_)
    buffer.copy_(kept)
    optimizer.step()
    assert torch.equal(param, before - (0.5 * kept + 1))
    storage.resize_(0)
    with pytest.raises(RuntimeError, match="has no memory"):
        optimizer.step()


def test_a_freed_storage_in_a_state_dict_is_refused() -> None:
    param = nn.Parameter(torch.zeros(4))
    optimizer = optim.SGD([param], lr=1.0, momentum=0.5)
    param.grad = torch.ones(4)
    optimizer.step()
    packed: dict[str, Any] = optimizer.state_dict()
    buffer = torch.ones(4)
    packed["state"][0]["momentum_buffer"] = buffer
    buffer.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"'momentum_buffer' of parameter 0.*has no memory"):
        optimizer.load_state_dict(packed)
    optimizer.step()
    assert torch.equal(param, torch.full((4,), -2.5))


def test_a_step_count_exchanged_through_the_state_dict() -> None:
    """By memory, where the address may be the only thing that changes."""
    for exchange in (by_data, by_set, by_swap):
        param, other = (nn.Parameter(torch.ones(3)) for _ in range(2))
        for p, optimizer in ((param, optim.Adam([param])), (other, torch.optim.Adam([other]))):
            p.grad = torch.ones(3)
            optimizer.step()
            step = optimizer.state_dict()["state"][0]["step"]
            optimizer.step()
            exchange(step, torch.tensor(7.0))
            p.grad = torch.full((3,), 0.5)
            optimizer.step()
            assert optimizer.state[p]["step"] == 8
        torch.testing.assert_close(param, other)


def test_memory_that_somebody_moves_through_a_view() -> None:
    """Who has only a view of a state can still move the memory of both, long after the state dict is gone."""
    param, other = (nn.Parameter(torch.zeros(4)) for _ in range(2))
    optimizers = [optim.SGD([param], lr=0.5, momentum=0.5), torch.optim.SGD([other], lr=0.5, momentum=0.5)]
    views: list[Tensor] = []
    for round_ in range(8):
        for p, optimizer in zip((param, other), optimizers, strict=True):
            p.grad = torch.ones(4)
            optimizer.step()
            if round_ == 2:
                views.append(optimizer.state_dict()["state"][0]["momentum_buffer"].detach())
        if round_ == 5:
            views[0].share_memory_()
    assert torch.equal(param, other) and torch.equal(*views)


def test_a_state_dict_that_is_gone_is_forgotten() -> None:
    """While somebody holds one, each step looks at all states: not any longer."""
    params = [nn.Parameter(torch.zeros(4)) for _ in range(3)]
    optimizer = optim.Adam(params)
    for param in params:
        param.grad = torch.ones(4)
    optimizer.step()
    held = optimizer.state_dict()
    optimizer.step()
    assert optimizer._stepper.trust.lent
    part = held["state"][1]["exp_avg"]
    del held
    optimizer.step()
    assert optimizer._stepper.trust.lent
    del part
    optimizer.step()
    assert optimizer._stepper.trust.holds and not optimizer._stepper.trust.lent
