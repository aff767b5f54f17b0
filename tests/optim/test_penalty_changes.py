"""Penalties as keys of param groups, during training: what may change, what belongs to a group alone, what is noticed late."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import regkernels
from regkernels import optim
from tests.optim.test_penalty_keys import parameter, with_gradient
from tests.support import penalised
from tests.support.penalised_cases import STRENGTHS, some_weights

# --- during training ---


@pytest.mark.parametrize("name", STRENGTHS)
def test_a_strength_that_comes_and_goes(name: str) -> None:
    """Each step is that of an optimizer which had the strength from the beginning; the states stay where they are."""
    w = with_gradient(parameter(40))
    optimizer = optim.Adam([w], lr=0.1, amsgrad=True)
    places = None
    for strength in (0.0, 0.0, 0.1, 0.3, torch.tensor(0.2), 0.0, 0.4):
        twin = nn.Parameter(w.detach().clone())
        twin.grad = w.grad.clone()
        other = optim.Adam([twin], lr=0.1, amsgrad=True, **{name: strength})
        other.load_state_dict(
            {**copy.deepcopy(optimizer.state_dict()), "param_groups": other.state_dict()["param_groups"]}
        )
        optimizer.param_groups[0][name] = strength
        optimizer.step(), other.step()
        assert torch.equal(w, twin)
        now = [value.data_ptr() for key, value in optimizer.state[w].items() if key != "step"]
        assert places is None or now == places
        places = now
    assert optimizer.state[w]["step"] == 7


def test_another_strength_takes_no_new_plan() -> None:
    w = with_gradient(parameter(40))
    optimizer = optim.SGD([w], lr=0.1, momentum=0.5, mcp=0.1)
    optimizer.step()
    (plan,) = optimizer._stepper.plans
    for changes in ({"mcp": 0.2}, {"mcp_gamma": 4.0}, {"positive": True}, {"lr": 0.0}):
        optimizer.param_groups[0].update(changes)
        optimizer.step()
        assert optimizer._stepper.plans[0] is plan


def test_l1_weights_that_change() -> None:
    """In place, exchanged, in another layout; what is negative is refused, and can be repaired."""
    w = with_gradient(nn.Parameter(torch.randn(6, 8)))
    weights = [some_weights(w.detach())]
    optimizer = optim.SGD([w], lr=0.1, l1=0.3, l1_weights=weights)

    def check() -> None:
        current = optimizer.param_groups[0]["l1_weights"][0]
        expected = regkernels.prox.weighted_l1(w.detach() - 0.1 * w.grad, 0.3, current, step=0.1)
        optimizer.step()
        assert torch.equal(w, expected)

    check()
    weights[0].mul_(3.0)
    check()
    weights[0] = torch.rand(6, 8)
    check()
    for transposed in (torch.rand(8, 6).t(), torch.rand(6, 16)[:, ::2]):
        optimizer.param_groups[0]["l1_weights"] = [transposed]
        check()
        transposed.mul_(0.5)
        check()
    before = w.detach().clone()
    transposed[2, 3] = -1.0
    with pytest.raises(ValueError, match=r"l1_weights\[0\] must be >= 0"):
        optimizer.step()
    assert torch.equal(w, before)
    transposed[2, 3] = 1.0
    check()
    optimizer.param_groups[0]["l1_weights"] = None
    expected = regkernels.prox.soft_threshold(w.detach() - 0.1 * w.grad, 0.1 * 0.3)
    optimizer.step()
    assert torch.equal(w, expected)


def test_keys_are_of_their_group() -> None:
    groups = [
        {"params": [with_gradient(parameter(50))], **keys}
        for keys in ({}, *({name: 0.2} for name in STRENGTHS), {"box": (-0.1, 0.2)}, {"positive": True})
    ]
    starts = [group["params"][0].detach().clone() for group in groups]
    optimizer = optim.SGD(groups, lr=0.5, stats=True)
    optimizer.step()
    for group, start in zip(optimizer.param_groups, starts, strict=True):
        (w,) = group["params"]
        z = start - 0.5 * w.grad
        name = next((name for name in STRENGTHS if group.get(name)), None)
        if name is not None:
            z = penalised.operator(name, z, 0.2, penalised.PENALTIES[name].shape, 0.5)
        elif group.get("box"):
            z = z.clamp(-0.1, 0.2)
        elif group.get("positive"):
            z = z.clamp(min=0)
        assert torch.equal(w, z)
    assert optimizer.stats.nonzeros.tolist() == [int((group["params"][0] != 0).sum()) for group in groups]


@pytest.mark.parametrize(
    ("slip", "intended"), [("mpc", "mcp"), ("group_lasso", "group_l1"), ("grad_clip", "max_grad_norm")]
)
def test_a_slip_of_the_pen_is_named(slip: str, intended: str) -> None:
    with pytest.raises(TypeError, match=f"Adam has no argument '{slip}'; did you mean {intended}?"):
        optim.Adam(nn.Linear(3, 2).parameters(), **{slip: 0.1})


def test_a_slip_in_an_option_of_torchs_is_warned_of() -> None:
    """torch carries such a key along in silence, and whoever reads it may be somebody else."""
    with pytest.warns(
        UserWarning, match="param group 0 has the key 'beta', which has no effect; did you mean betas?"
    ) as caught:
        optim.Adam([{"params": nn.Linear(3, 2).parameters(), "beta": (0.1, 0.2)}])
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"group_l1": 0.1}, "group_size=2 does not divide the 3 of group_dim=0"),
        ({"l1": 0.1, "l1_weights": [torch.ones(2, 4)]}, r"l1_weights\[0\] has shape \(2, 4\)"),
    ],
    ids=["groups", "l1_weights"],
)
def test_parameters_without_a_shape_are_checked_when_they_have_one(keys: dict[str, Any], message: str) -> None:
    for width in (2, 3):
        layer = nn.LazyLinear(width, bias=False)
        optimizer = optim.SGD(layer.parameters(), lr=0.1, group_size=2, **keys)
        layer(torch.ones(5, 4)).sum().backward()
        before = layer.weight.detach().clone()
        if width == 2:
            optimizer.step()
            assert not torch.equal(layer.weight, before)
        else:
            with pytest.raises(ValueError, match=message):
                optimizer.step()
            assert torch.equal(layer.weight, before)
