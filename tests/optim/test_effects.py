"""What rounding to nearest takes back is warned of: once, in the user's line, where it is asked for."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import regkernels
from regkernels import optim

LOST = r"{} has little effect on weights of torch\.{} that are rounded to nearest.*{}"
SHRINKING: list[dict[str, Any]] = [
    {"l1": 0.1},
    {"l1": torch.tensor(0.1)},
    {"l1": 0.1, "l1_mode": "decoupled"},
    *({key: 0.1} for key in ("l_half", "mcp", "scad", "log_sum", "huber", "group_l1")),
    {"weight_decay": 0.1, "weight_decay_mode": "prox"},
]
NOT_SHRINKING: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1},  # as in torch.optim.AdamW
    {"weight_decay": 0.1, "weight_decay_mode": "coupled"},
    {"weight_decay": 0.0, "weight_decay_mode": "prox"},
    {"l1": 0.1, "l1_mode": "subgradient"},  # in the gradient, as the loss
    {"l0": 0.1},  # a jump to zero
    {"positive": True},
    {"max_norm": 1.0},
    *({"l1": 0.1, "param_rounding": rounding} for rounding in ("stochastic", "remainder", "master")),
]


def parameter(dtype: torch.dtype = torch.bfloat16) -> nn.Parameter:
    return nn.Parameter(torch.ones(8, 2, dtype=dtype))


@pytest.mark.parametrize("penalty", SHRINKING, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_what_is_lost_is_warned_of(penalty: dict[str, Any], dtype: torch.dtype) -> None:
    key, name = next(iter(penalty)), str(dtype).removeprefix("torch.")
    with pytest.warns(UserWarning, match=LOST.format(key, name, 'param_rounding="stochastic"')) as caught:
        optim.AdamW(
            [{"params": parameter(torch.float32)}, {"params": parameter(dtype)}, {"params": parameter(dtype)}],
            **penalty,
        )
    assert [warning.filename for warning in caught] == [__file__], "once, here"
    optimizer = optim.AdamW([parameter(dtype)])
    with pytest.warns(UserWarning, match=LOST.format(key, name, "")) as caught:
        optimizer.add_param_group({"params": parameter(dtype), **penalty})
    optimizer.add_param_group({"params": parameter(dtype), **penalty})
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize("penalty", NOT_SHRINKING, ids=str)
def test_nothing_else_is(penalty: dict[str, Any], recwarn: pytest.WarningsRecorder) -> None:
    optim.AdamW([parameter()], **penalty)
    optim.AdamW([parameter(torch.float32), parameter().requires_grad_(False)], l1=0.1)
    assert not recwarn.list


def test_what_attach_prox_shrinks_is_warned_of(recwarn: pytest.WarningsRecorder) -> None:
    for strengths, key in (({"l1": 0.1}, "l1"), ({"l1": 0.0, "weight_decay": 0.1}, "weight_decay")):
        with pytest.warns(UserWarning, match=LOST.format(key, "bfloat16", "keep weights in float32")) as caught:
            regkernels.attach_prox(torch.optim.AdamW([{"params": parameter()}, {"params": parameter()}]), **strengths)
        assert [warning.filename for warning in caught] == [__file__]
    regkernels.attach_prox(torch.optim.AdamW([parameter()], weight_decay=0.1), l1=0.0)
    regkernels.attach_prox(torch.optim.AdamW([parameter(torch.float32)]), l1=0.1)
    assert not recwarn.list


def test_it_is_true() -> None:
    """1100 thresholds of 1e-3 take 1.0 to 0, and leave it where it is in bfloat16."""
    ends = []
    for rounding in ("nearest", "remainder"):
        weight = parameter()
        optimizer = optim.SGD([weight], lr=0.1, l1=0.0, param_rounding=rounding)
        optimizer.param_groups[0]["l1"] = 0.01  # later, which nobody is warned of
        weight.grad = torch.zeros_like(weight)
        for _ in range(1100):
            optimizer.step()
        ends.append(weight.unique().tolist())
    assert ends == [[1.0], [0.0]]


@pytest.mark.parametrize(
    "options", [{"l1": 0.1}, {"mcp": 0.1}, {"weight_decay": 0.1, "weight_decay_mode": "prox"}], ids=str
)
def test_a_limit_that_cannot_hold_is_warned_of(options: dict[str, Any]) -> None:
    param = parameter(torch.float32)
    text = "centered=True lets .* erase weights .* pass shrink_limit=None"
    with pytest.warns(UserWarning, match=text) as caught:
        optim.RMSprop([param], centered=True, **options)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optim.RMSprop([param], centered=True, shrink_limit=None, **options)
        optim.RMSprop([param], **options)
        optim.RMSprop([param], centered=True, l1=0.1, l1_mode="decoupled")
    with pytest.warns(UserWarning, match=text):
        regkernels.attach_prox(torch.optim.RMSprop([param], centered=True), l1=0.1)
