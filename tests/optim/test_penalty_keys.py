"""Penalties as keys of param groups: what is refused before anything changes."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regkernels import optim
from tests.support import engine, penalised
from tests.support.penalised_cases import STRENGTHS

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
