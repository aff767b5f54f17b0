"""What a `DTensor` and the memory of a rank do not tell each other: that one of them was changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import regkernels as rk
from regkernels import optim
from tests.distributed import world

PENALTIES: dict[str, Callable[[Any], Tensor]] = {
    "elements": lambda p: rk.l2_penalty(p, 0.3),
    "groups": lambda p: rk.group_l1_penalty(p, 0.3),
    "groups on several ranks": lambda p: rk.group_l1_penalty(p, 0.3, dim=1),
}


def _spread(tensor: Tensor) -> Any:
    mesh = init_device_mesh("cpu", (2,))
    return distribute_tensor(tensor, mesh, [Shard(0)], src_data_rank=None)


def _step(optimizer: optim.Optimizer, param: Any) -> None:
    param.grad = torch.zeros_like(param)
    optimizer.step()


def _late_backward(penalty: Callable[[Any], Tensor]) -> str:
    param = nn.Parameter(_spread(torch.ones(5, 3)))
    value = penalty(param)
    _step(optim.SGD([param], lr=0.1, weight_decay=0.1), param)
    value.backward()
    return "nothing"


def _weights_in_memory(factor: float) -> Tensor:
    """After a step whose l1_weights were multiplied where this rank keeps them. They do not lie as the weights do: there is a
    copy of them."""
    param = nn.Parameter(_spread(torch.ones(5, 3)))
    l1_weights = _spread(torch.ones(3, 5).t())
    assert l1_weights.to_local().stride() != param.to_local().stride()
    optimizer = optim.SGD([{"params": [param], "l1_weights": [l1_weights]}], lr=0.5, l1=0.25)
    _step(optimizer, param)
    l1_weights.to_local().mul_(factor)
    _step(optimizer, param)
    return param.detach().to_local()


def _gradient_of_another_size() -> str:
    param = nn.Parameter(_spread(torch.ones(5, 3)))  # 3 rows, and 2
    whole = {"shape": param.shape, "stride": param.stride()}
    param.grad = DTensor.from_local(torch.zeros(3, 3), param.device_mesh, param.placements, run_check=False, **whole)
    optim.SGD([param], lr=0.1).step()
    return "nothing"


def _said(call: Callable[[], Any]) -> str:
    try:
        return str(call())
    except (RuntimeError, ValueError) as error:
        return str(error)


def _told(rank: int) -> dict[str, Any]:
    return {
        **{name: _said(lambda penalty=penalty: _late_backward(penalty)) for name, penalty in PENALTIES.items()},
        "weights": _weights_in_memory(3.0),
        "negative weights": _said(lambda: _weights_in_memory(-1.0)),
        "gradient": _said(_gradient_of_another_size),
    }


@pytest.fixture(scope="module")
def told() -> list[dict[str, Any]]:
    return world.run(2, _told)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_backward_through_a_penalty_of_weights_that_have_changed_raises(told: Any, penalty: str) -> None:
    assert all("has been modified by an inplace operation" in found[penalty] for found in told)


def test_weights_of_l1_that_are_changed_in_memory_are_seen(told: Any) -> None:
    for found in told:
        assert torch.equal(found["weights"], torch.full_like(found["weights"], 1 - 0.125 - 3 * 0.125))
        assert "l1_weights[0] must be >= 0" in found["negative weights"]


def test_a_gradient_of_another_size_is_named_by_the_rank_that_has_it(told: Any) -> None:
    assert told[0]["gradient"] == "nothing"
    assert "the gradient of parameter 0 of param group 0" in told[1]["gradient"]
    assert "has (3, 3) of it on this rank, the parameter has (2, 3)" in told[1]["gradient"]
