"""Step counts that are large, or none: each parameter is stepped with its own group's options, or it is said what is wrong."""

from __future__ import annotations

import copy
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regkernels import optim

pytestmark = pytest.mark.usefixtures("one_thread")


def stepped(count: int = 2) -> tuple[list[nn.Parameter], optim.Optimizer]:
    params = [nn.Parameter(torch.zeros(3)) for _ in range(count)]
    groups = [{"params": [param], "lr": 10.0**-index} for index, param in enumerate(params)]
    optimizer = optim.Adam(groups, betas=(0.0, 0.0), eps=0.0)
    for param in params:
        param.grad = torch.ones(3)
    optimizer.step()
    return params, optimizer


@pytest.mark.parametrize("exponent", [24, 39, 40, 41, 52])
@pytest.mark.parametrize("by_hand", [False, True])
def test_large_counts_do_not_change_the_group(exponent: int, by_hand: bool) -> None:
    """Without averages each step is lr, of the parameter's own group, and the next one too."""
    params, optimizer = stepped(3)
    step = torch.tensor(2.0**exponent, dtype=torch.float64)
    if by_hand:
        optimizer.state[params[1]]["step"] = step
    else:
        packed = copy.deepcopy(optimizer.state_dict())
        packed["state"][1]["step"] = step
        optimizer.load_state_dict(packed)
    for count in (2, 3):
        optimizer.step()
        for index, param in enumerate(params):
            torch.testing.assert_close(param, torch.full((3,), -count * 10.0**-index))


NO_COUNTS: dict[str, tuple[Any, type[Exception], str]] = {
    "NaN": (torch.tensor(float("nan")), ValueError, "got nan"),
    "negative": (torch.tensor(-1.0), ValueError, "got -1.0"),
    "infinite": (torch.tensor(float("inf")), ValueError, "got inf"),
    "a fraction": (torch.tensor(1.5), ValueError, "got 1.5"),
    "beyond float64": (10**400, ValueError, "got inf"),
    "a fraction beyond float64": (Fraction(10**400), ValueError, "got inf"),
    "beyond whole numbers": (torch.tensor(2.0**53, dtype=torch.float64), ValueError, "got 9007199254740992.0"),
    "text": ("3", TypeError, "got str: '3'"),
    "two": (torch.ones(2), TypeError, r"shape \(2,\)"),
    "on meta": (torch.ones((), device="meta"), TypeError, "on meta"),
}


@pytest.mark.parametrize("way", ["loaded", "set", "written"])
@pytest.mark.parametrize("case", NO_COUNTS)
def test_what_is_no_count_is_refused_and_nothing_changes(case: str, way: str) -> None:
    step, error, message = NO_COUNTS[case]
    params, optimizer = stepped()
    before = copy.deepcopy(optimizer.state_dict())
    name = "'step' of parameter 0 of param group 1"

    def try_it() -> None:
        if way == "loaded":
            packed = copy.deepcopy(before)
            packed["state"][1]["step"] = step
            optimizer.load_state_dict(packed)
        elif way == "written" and isinstance(step, Tensor) and step.dtype == torch.float32 and step.shape == ():
            optimizer.state[params[1]]["step"].copy_(torch.tensor(1.5) if step.is_meta else step)
        else:
            optimizer.state[params[1]]["step"] = step
        optimizer.step()

    if way == "written" and isinstance(step, Tensor) and step.is_meta:
        error, message = ValueError, "got 1.5"
    with pytest.raises(error, match=rf"(?s){name}.*{message}") as raised:
        try_it()
    if error is ValueError:
        assert "set it to a whole number" in str(raised.value)
    assert all(torch.equal(param, torch.full((3,), -(10.0**-index))) for index, param in enumerate(params))
    optimizer.load_state_dict(before)
    optimizer.step()
    torch.testing.assert_close(params[1], torch.full((3,), -0.2))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("param_numbers", (), "param_numbers must list one number for each of 1 parameters, got .."),
        ("param_numbers", (1, 2), "param_numbers must list.*1 parameters, got .1, 2."),
        ("param_numbers", ("one",), "param_numbers.*'one'"),
        ("param_numbers", (-1,), "param_numbers.*-1"),
        ("param_numbers", 3, "param_numbers.*3"),
        ("maximize", torch.tensor([True, False]), r"maximize must be True or False.*shape \(2,\)"),
        ("amsgrad", torch.tensor([True, False]), r"amsgrad must be True or False.*shape \(2,\)"),
        ("capturable", torch.tensor([]), r"capturable must be True or False.*shape \(0,\)"),
        ("differentiable", torch.zeros(2), r"differentiable must be True or False.*shape \(2,\)"),
    ],
)
@pytest.mark.parametrize("by_hand", [False, True])
def test_options_that_no_step_can_be_made_with(key: str, value: Any, message: str, by_hand: bool) -> None:
    params, optimizer = stepped()
    before = copy.deepcopy(optimizer.state_dict())
    if by_hand:
        optimizer.param_groups[1][key] = value
        with pytest.raises((ValueError, TypeError), match=f"(?s){message}.*param group 1"):
            optimizer.step()
    else:
        packed = copy.deepcopy(before)
        packed["param_groups"][1][key] = value
        with pytest.raises((ValueError, TypeError), match=f"(?s){message}.*param group 1"):
            optimizer.load_state_dict(packed)
        optimizer.step()
        assert torch.equal(params[0], torch.full((3,), -2.0))
    optimizer.param_groups[1][key] = False if key != "param_numbers" else None
    optimizer.step()
