"""Adagrad has its states from the start, and shares them, as torch's does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from regkernels import optim
from tests.optim.states.test_placed import in_a_process, pull

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = [torch.float64, torch.float32, torch.complex64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_states_before_the_first_step_are_torchs(dtype: torch.dtype) -> None:
    params = [nn.Parameter(torch.ones(3, 4, dtype=dtype).t()), nn.Parameter(torch.ones((), dtype=dtype))]
    ways: list[dict[str, Any]] = []
    for package in (optim, torch.optim):
        ways.append(package.Adagrad(params, initial_accumulator_value=0.25).state_dict()["state"])
    for mine, other in zip(ways[0].values(), ways[1].values(), strict=True):
        assert mine.keys() == other.keys()
        for key, value in mine.items():
            assert value.dtype == other[key].dtype and torch.equal(value, other[key]), key


def test_half_precision_sums_are_float32_from_the_start() -> None:
    param = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = optim.Adagrad([{"params": [param], "initial_accumulator_value": 0.1}])
    (state,) = optimizer.state_dict()["state"].values()
    assert torch.equal(state["sum"], torch.full((4,), 0.1))


def test_whoever_holds_them_sees_the_steps() -> None:
    params, others = ([nn.Parameter(torch.ones(3)) for _ in range(2)] for _ in range(2))
    optimizer, reference = optim.Adagrad(params, lr=0.1), torch.optim.Adagrad(others, lr=0.1)
    held = [value for state in optimizer.state.values() for value in state.values()]
    for some, steps in ((params, optimizer), (others, reference)):
        for round_ in range(1, 4):
            for param in some[: round_ % 2 + 1]:
                param.grad = torch.full((3,), float(round_))
            steps.step()
    right = [value for state in reference.state.values() for value in state.values()]
    for value, other in zip(held, right, strict=True):
        torch.testing.assert_close(value, other)


def test_processes_share_them() -> None:
    param, other = (nn.Parameter(torch.tensor([1.0, -2.0]).share_memory_()) for _ in range(2))
    optimizer = optim.Adagrad([param], lr=0.1, lr_decay=0.1)
    optimizer.share_memory()
    in_a_process(optimizer, param, 3)
    pull(optimizer, param, 2)
    in_a_process(optimizer, param, 1)
    pull(torch.optim.Adagrad([other], lr=0.1, lr_decay=0.1), other, 6)
    assert optimizer.state[param]["step"] == 6
    torch.testing.assert_close(param, other)


def test_lazy_and_late_parameters_get_theirs_with_the_first_step() -> None:
    model = nn.LazyLinear(3)
    optimizer = optim.Adagrad(model.parameters(), initial_accumulator_value=0.5)
    assert not optimizer.state_dict()["state"]
    late = nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [late]})
    (model(torch.ones(1, 2)).sum() + late.sum()).backward()
    optimizer.step()
    assert torch.equal(optimizer.state[late]["sum"], torch.full((2,), 1.5))
    assert torch.equal(optimizer.state[model.weight]["sum"], torch.full((3, 2), 1.5))


def test_kept_on_the_cpu() -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer = optim.CPUOffload([param], optim.Adagrad, initial_accumulator_value=0.5)
    held = optimizer.state[param]["sum"]
    assert torch.equal(held, torch.full((3,), 0.5))
    param.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(held, torch.full((3,), 1.5)) and optimizer.state[param]["step"] == 1
