"""Penalties as keys of param groups: what is refused, what may change during training, what is saved, copied and shared."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regkernels
from regkernels import optim
from tests.support import engine, penalised
from tests.support.penalised_cases import STRENGTHS, some_weights

NAN, INF = math.nan, math.inf
ONES = [torch.ones(3, dtype=torch.float64)]
with torch.inference_mode():
    WITHOUT_VERSIONS = [torch.ones(3, dtype=torch.float64)]

Refusal = tuple[dict[str, Any], type[Exception], str]
VALUES: list[Refusal] = [
    *(({key: NAN}, ValueError, f"{key} must be finite, got nan") for key in STRENGTHS),
    *(({key: INF}, ValueError, f"{key} must be finite, got inf") for key in STRENGTHS),
    *(({key: -0.5}, ValueError, f"{key} must be >= 0, got -0.5") for key in STRENGTHS),
    *(({key: "0.1"}, TypeError, f"{key} must be a number, got '0.1'") for key in STRENGTHS),
    *(({key: None}, TypeError, f"{key} must be a number, got None") for key in STRENGTHS),
    *(({key: 0.0}, ValueError, f"{key} must be > 0, got 0.0") for key in ("mcp_gamma", "log_sum_eps", "huber_delta")),
    ({"scad_a": 1.0}, ValueError, "scad_a must be > 1, got 1.0"),
    *(({key: NAN}, ValueError, f"{key} must be finite, got nan") for key in penalised.KEYS.values()),
    *(({key: "3"}, TypeError, f"{key} must be a number, got '3'") for key in penalised.KEYS.values()),
    *(
        ({"positive": value}, TypeError, f"positive must be True or False, got {value!r}")
        for value in (1, "no", None, 0.5)
    ),
    ({"box": (1.0, 0.0)}, ValueError, "box must have low <= high, got (1.0, 0.0)"),
    ({"box": (NAN, 0.0)}, ValueError, "box must have low <= high, got (nan, 0.0)"),
    ({"box": (0.0,)}, ValueError, "box must be a pair of numbers (low, high), got (0.0,)"),
    ({"box": 1.0}, ValueError, "box must be a pair of numbers (low, high), got 1.0"),
    ({"box": "01"}, ValueError, "box must be a pair of numbers (low, high), got '01'"),
    ({"box": (INF, INF)}, ValueError, "box must leave finite numbers between its bounds, got (inf, inf)"),
    ({"box": (-INF, -INF)}, ValueError, "box must leave finite numbers between its bounds, got (-inf, -inf)"),
    ({"box": (-2.0, -1.0), "positive": True}, ValueError, "box=(-2.0, -1.0) contradicts positive=True"),
    (
        {"weight_decay_mode": "careful"},
        ValueError,
        "weight_decay_mode must be one of 'coupled', 'decoupled', 'prox', 'cautious'",
    ),
    *(
        ({one: 0.1, other: 0.2}, ValueError, f"{one} and {other} cannot be combined")
        for one, other in (
            ("l1", "l0"),
            ("l1", "mcp"),
            ("l0", "l_half"),
            ("mcp", "scad"),
            ("scad", "log_sum"),
            ("log_sum", "huber"),
        )
    ),
    *(
        ({"box": (-1.0, 1.0), key: 0.1}, ValueError, f"box and {key} cannot be combined")
        for key in ("l0", "l_half", "mcp", "scad", "log_sum")
    ),
    ({"l1_weights": ONES, "mcp": 0.1}, ValueError, "l1_weights and mcp cannot be combined"),
    ({"l1_weights": ONES, "l1": 0.1, "l1_mode": "subgradient"}, ValueError, 'l1_weights and l1_mode="subgradient"'),
    (
        {"l1_weights": torch.ones(3)},
        ValueError,
        "l1_weights must be a list of one tensor per parameter of the group (1), got Tensor",
    ),
    (
        {"l1_weights": 2.0},
        ValueError,
        "l1_weights must be a list of one tensor per parameter of the group (1), got float",
    ),
    (
        {"l1_weights": ONES * 2},
        ValueError,
        "l1_weights must be a list of one tensor per parameter of the group (1), got 2 of",
    ),
    ({"l1_weights": [[1.0, 1.0, 1.0]]}, TypeError, "l1_weights[0] must be a tensor, got list"),
    ({"l1_weights": [torch.ones(1, 3).double()]}, ValueError, "l1_weights[0] has shape (1, 3)"),
    ({"l1_weights": [torch.ones(3)]}, ValueError, "l1_weights[0] has dtype torch.float32"),
    ({"l1_weights": [torch.ones(3).double().to("meta")]}, ValueError, "l1_weights[0] has device meta"),
    ({"l1_weights": [torch.ones(3).double().to_sparse()]}, ValueError, "l1_weights[0] has layout torch.sparse_coo"),
    ({"l1_weights": [torch.tensor([1.0, -0.5, 1.0]).double()]}, ValueError, "l1_weights[0] must be >= 0"),
    ({"l1_weights": [torch.tensor([1.0, NAN, 1.0]).double()]}, ValueError, "l1_weights[0] must be >= 0"),
    ({"l1_weights": WITHOUT_VERSIONS}, ValueError, "l1_weights[0] was made under torch.inference_mode()"),
]


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.linspace(-1, 1, math.prod(shape), dtype=torch.float64).view(shape))


def with_gradient(param: Tensor) -> Tensor:
    param.grad = torch.cos(torch.arange(param.numel(), dtype=torch.float64)).view(param.shape).to(param.dtype)
    return param


def bits(optimizer: optim.Optimizer) -> engine.Outcome:
    return {name: tensor for name, tensor in engine.snapshot(optimizer).items() if not name.startswith("stats")}


@pytest.mark.parametrize(("kwargs", "error", "text"), VALUES, ids=lambda v: str(v)[:60] if isinstance(v, str) else "")
def test_what_is_refused_before_anything_changes(kwargs: dict[str, Any], error: type[Exception], text: str) -> None:
    message = re.escape(text)
    with pytest.raises(error, match=message):
        optim.SGD([parameter(3)], lr=0.1, **kwargs)
    first, second = parameter(3), parameter(3)
    optimizer = optim.Adam([{"params": [first]}, {"params": [second]}], lr=0.1, l1=0.0)
    for param in (first, second):
        with_gradient(param)
    optimizer.step()
    before, saved = bits(optimizer), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(error, match=message):
        optimizer.add_param_group({"params": [parameter(3)], **kwargs})
    assert len(optimizer.param_groups) == 2
    for wrong in (1, 0):
        bad = copy.deepcopy(saved)
        bad["param_groups"][wrong].update(kwargs)
        if "dtype" not in text:  # that is converted, as states are
            with pytest.raises(error, match=message):
                optimizer.load_state_dict(bad)
        kept = {key: optimizer.param_groups[wrong].get(key) for key in kwargs}
        optimizer.param_groups[wrong].update(kwargs)
        with pytest.raises(error, match=message):
            optimizer.step()
        engine.assert_same(bits(optimizer), before)
        for key, value in kept.items():
            optimizer.param_groups[wrong].pop(key) if value is None else optimizer.param_groups[wrong].update(
                {key: value}
            )
    optimizer.step()
    assert not torch.equal(first, next(iter(before.values()))), "and training goes on"


@pytest.mark.parametrize("momentum", [{"momentum": 1.0}, {"momentum": 0.9, "dampening": 1.0}], ids=str)
@pytest.mark.parametrize("key", STRENGTHS)
def test_a_gain_that_is_not_positive(key: str, momentum: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"the proximal step of {key} needs momentum < 1 and dampening < 1"):
        optim.SGD([parameter(3)], lr=0.1, **momentum, **{key: 0.1})
    optim.SGD([parameter(3)], lr=0.1, positive=True, **momentum)


@pytest.mark.parametrize("key", STRENGTHS)
def test_lion_has_no_metric(key: str) -> None:
    with pytest.raises(ValueError, match=f"{key} is not possible with Lion.*no metric"):
        optim.Lion([parameter(3)], **{key: 0.1})
    optimizer = optim.Lion([parameter(3)], **{key: 0.0}, positive=True, weight_decay_mode="cautious")
    optimizer.param_groups[0][key] = 0.1
    with_gradient(optimizer.param_groups[0]["params"][0])
    with pytest.raises(ValueError, match=f"{key} is not possible with Lion"):
        optimizer.step()


@pytest.mark.parametrize(
    "keys",
    [{name: 0.1} for name in STRENGTHS] + [{"positive": True}, {"box": (0.0, 1.0)}, {"l1_weights": None}],
    ids=str,
)
def test_complex_parameters(keys: dict[str, Any]) -> None:
    param = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    (key,) = keys
    if key == "l1_weights":
        keys = {"l1_weights": [torch.ones(3)]}
    with pytest.raises(
        ValueError, match=f"parameter 0 of param group 0 is complex, and {key} is defined for real parameters"
    ):
        optim.SGD([param], lr=0.1, **keys)
    # Cautious decay is done part by part, as all decay is; what cannot be is refused when it comes later, too.
    optimizer = optim.SGD([param], lr=0.1, weight_decay=0.1, weight_decay_mode="cautious")
    param.grad = torch.ones_like(param)
    optimizer.step()
    before = param.detach().clone()
    optimizer.param_groups[0].update(keys)
    with pytest.raises(ValueError, match=f"is complex, and {key} is defined for real parameters"):
        optimizer.step()
    assert torch.equal(param, before)


# --- during training ------------------------------------------------------------------------------------------------


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
    (plan,) = optimizer.stepper.plans
    for changes in ({"mcp": 0.2}, {"mcp_gamma": 4.0}, {"positive": True}, {"lr": 0.0}):
        optimizer.param_groups[0].update(changes)
        optimizer.step()
        assert optimizer.stepper.plans[0] is plan


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
    ("slip", "intended"),
    [
        ("mpc", "mcp"),
        ("l1_weight", "l1_weights"),
        ("group_size_", "group_size"),
        ("hubar", "huber"),
        ("group_lasso", "group_l1"),
        ("l2", "weight_decay = 2 * l2"),
    ],
)
def test_a_slip_of_the_pen_is_named(slip: str, intended: str) -> None:
    model = nn.Linear(3, 2)
    message = re.escape(f"did you mean {intended}?")
    with pytest.raises(TypeError, match=f"Adam has no argument '{slip}'; {message}"):
        optim.Adam(model.parameters(), **{slip: 0.1})
    with pytest.warns(
        UserWarning, match=f"param group 0 has the key '{slip}', which has no effect; {message}"
    ) as caught:
        optim.Adam([{"params": model.parameters(), slip: 0.1}])
    assert caught[0].filename == __file__


def test_keys_of_others_are_carried_along_in_silence(recwarn: pytest.WarningsRecorder) -> None:
    keys = {"name": "a", "param_names": ["a", "b"], "group_id": 3, "lr_scale": 0.5, "initial_lr": 0.1, "foreach": None}
    group = optim.SGD([{"params": nn.Linear(3, 2).parameters(), **keys}]).param_groups[0]
    assert keys.items() <= group.items() and not recwarn.list


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
