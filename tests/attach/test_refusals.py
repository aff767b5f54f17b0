"""What `attach_prox` refuses, before anything is changed, and what it does not need to refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import regkernels as rk
from regkernels import attach_prox
from regkernels.optim import penalty_keys
from tests.support.attaching import Make, closed_form, of, parameter

pytestmark = pytest.mark.interpreted


# --- refused ---


class Unknown(torch.optim.Optimizer):
    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    def step(self, closure: Any = None) -> None:
        pass


class Overridden(torch.optim.Adam):
    def step(self, closure: Any = None) -> None:
        pass


class Derived(torch.optim.Adam):
    pass


class Wrapper(torch.optim.Optimizer):
    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer


REFUSED: dict[str, tuple[Make, dict[str, Any], type[Exception], str]] = {
    "no optimizer": (nn.ParameterList, {}, TypeError, "must be a torch.optim.Optimizer, got ParameterList"),
    "own": (rk.optim.Adam, {}, TypeError, "pass l1= to it"),
    "lbfgs": (torch.optim.LBFGS, {}, TypeError, "LBFGS.*smooth"),
    "sparse": (torch.optim.SparseAdam, {}, TypeError, "SparseAdam.*dense"),
    "wrapper": (lambda params: Wrapper(of("Adam")(params)), {}, TypeError, "Wrapper wraps another"),
    "unknown": (Unknown, {}, ValueError, "Unknown takes for each element"),
    "overridden": (Overridden, {}, ValueError, "Overridden takes"),
    "sign": (torch.optim.Rprop, {}, ValueError, "l1_mode='decoupled'"),
    "options": (Unknown, {"metric": "adam"}, ValueError, r"betas, eps, which is not in its options \(param group 0\)"),
    "mode": (of("SGD"), {"l1_mode": "subgradient"}, ValueError, "l1_mode must be one of 'prox', 'decoupled'"),
    "metric": (of("SGD"), {"metric": "adagrid"}, ValueError, "metric must be one of 'adam'"),
    "no metric": (of("SGD"), {"metric": 3}, TypeError, "metric must be a name, a function"),
    "both": (of("SGD"), {"metric": "sgd", "l1_mode": "decoupled"}, ValueError, "belongs to l1_mode='prox'"),
    "negative": (of("SGD"), {"l1": -0.1}, ValueError, "l1 must be >= 0, got -0.1"),
    "infinite": (of("SGD"), {"weight_decay": float("inf")}, ValueError, "weight_decay must be finite"),
    "text": (of("SGD"), {"l1": "0.1"}, TypeError, "l1 must be a number"),
    "missing": (of("SGD"), {"l1": None}, ValueError, "l1 is missing"),
    "momentum": (of("SGD", momentum=1.0), {}, ValueError, "momentum < 1"),
    "differentiable": (of("Adam", differentiable=True), {}, ValueError, "differentiable=True"),
}


FAMILY: list[dict[str, Any]] = [
    *({name: 0.1} for name in ("l0", "mcp", "huber", "group_l1", "max_norm")),
    *({name: True} for name in ("positive", "unit_norm")),
    {"box": (0.0, 1.0)},
    {"l1_weights": [torch.ones(3)]},
]


@pytest.mark.parametrize("keys", FAMILY, ids=lambda keys: next(iter(keys)))
def test_what_it_does_not_apply_is_refused_in_groups(keys: dict[str, Any]) -> None:
    """Also where it is put there later; what the optimizer itself calls so is its own, and what is off does no harm."""
    name = next(iter(keys))
    param = parameter(3)
    with pytest.raises(ValueError, match=f"{name} is not applied by attach_prox .param group 0."):
        attach_prox(torch.optim.SGD([{"params": [param], **keys}], lr=0.1), l1=0.1)
    optimizer = torch.optim.SGD([{"params": [param], **penalty_keys.OFF, "mcp_gamma": 5.0}], lr=0.1)
    attach_prox(optimizer, l1=0.1)
    optimizer.param_groups[0].update(keys)
    param.grad = torch.ones_like(param)
    before = param.detach().clone()
    with pytest.raises(ValueError, match=f"{name} is not applied"):
        optimizer.step()
    assert torch.equal(param, before)
    optimizer.defaults[name] = None
    optimizer.step()
    assert not torch.equal(param, before)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_is_changed(name: str) -> None:
    make, options, error, message = REFUSED[name]
    optimizer = make([parameter(3)])
    with pytest.raises(error, match=message):
        attach_prox(optimizer, **{"l1": 0.1, **options})
    if name not in ("no optimizer", "wrapper"):
        assert not optimizer._optimizer_step_post_hooks
        assert "prox_weight_decay" not in optimizer.param_groups[0]


def test_what_does_not_change_the_step_is_not_refused() -> None:
    for make in (Derived, torch.optim.AdamW):
        attach_prox(make([parameter(3)]), l1=0.1)
    attach_prox(Unknown([parameter(3)]), l1=0.1, l1_mode="decoupled")
    attach_prox(of("SGD", momentum=1.0)([parameter(3)]), l1=0.0)


def test_refused_twice() -> None:
    optimizer = torch.optim.SGD([parameter(3)], lr=0.1)
    attach_prox(optimizer, l1=0.1)
    with pytest.raises(ValueError, match="shrunk twice"):
        attach_prox(optimizer, l1=0.1)


def test_complex_weights_are_for_groups_without_strengths() -> None:
    groups = [{"params": [parameter(3)]}, {"params": [nn.Parameter(torch.ones(2, dtype=torch.complex64))]}]
    with pytest.raises(ValueError, match="parameter 0 of param group 1 is complex"):
        attach_prox(torch.optim.Adam(groups), l1=0.1)
    groups[1]["l1"] = 0.0
    optimizer = torch.optim.Adam(groups)
    attach_prox(optimizer, l1=0.1)
    for group in groups:
        group["params"][0].grad = torch.ones_like(group["params"][0])
    optimizer.step()


def test_a_strength_that_became_wrong_stops_the_step() -> None:
    param = parameter(3)
    optimizer = torch.optim.SGD([param], lr=0.1)
    attach_prox(optimizer, l1=0.1)
    param.grad = torch.ones_like(param)
    before = param.detach().clone()
    optimizer.param_groups[0]["l1"] = float("nan")
    with pytest.raises(ValueError, match=r"l1 must be finite, got nan \(param group 0\)"):
        optimizer.step()
    assert torch.equal(param, before)


@pytest.mark.parametrize("name", ["Adagrad", "SGD"])
def test_sparse_gradients_are_refused_in_the_step(name: str) -> None:
    embedding = nn.Embedding(5, 2, sparse=True)
    optimizer = getattr(torch.optim, name)(embedding.named_parameters(), lr=0.1)
    attach_prox(optimizer, l1=0.1)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match=r"parameter 0 of param group 0 \(weight\) has layout torch.sparse_coo"):
        optimizer.step()


def test_a_state_that_is_missing_is_named() -> None:
    param = parameter(3)
    optimizer = Unknown([param])
    optimizer.param_groups[0].update(betas=(0.9, 0.99), eps=1e-8)
    attach_prox(optimizer, l1=0.1, metric="adam")
    param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match="no state 'exp_avg_sq'"):
        optimizer.step()


def test_what_has_made_no_step_yet_is_not_shrunk() -> None:
    param = parameter(3)
    optimizer = Unknown([param])
    optimizer.param_groups[0].update(betas=(0.9, 0.99), eps=1e-8)
    optimizer.state[param].update(step=0, exp_avg_sq=torch.ones_like(param))
    attach_prox(optimizer, l1=0.1, metric="adam")
    param.grad = torch.ones_like(param)
    before = param.detach().clone()
    optimizer.step()
    assert torch.equal(param, before)
    optimizer.state[param]["step"] = 1
    optimizer.step()
    torch.testing.assert_close(param.detach(), closed_form(before, 0.1 * 0.1 / 10), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (torch.ones(2), r"shape \(2,\).*whose shape is \(3,\)"),
        (torch.ones(3, dtype=torch.int64), "torch.int64"),
        (-1.0, "what metric has returned for parameter 0 of param group 0 must be >= 0, got -1.0"),
    ],
)
def test_metrics_that_do_not_fit_are_refused(answer: object, message: str) -> None:
    param = parameter(3)
    optimizer = Unknown([param])
    attach_prox(optimizer, l1=0.1, metric=lambda param, state, group: answer)
    param.grad = torch.ones_like(param)
    with pytest.raises(ValueError, match=message):
        optimizer.step()


def test_metrics_may_be_numbers_and_tensors_of_any_kind() -> None:
    params = [parameter(4), parameter(4), parameter(4), parameter(2, 2)]
    answers = [0.1, torch.tensor(0.2), torch.linspace(0, 1, 4), torch.linspace(0, 1, 4).view(2, 2).t().bfloat16()]
    given = dict(zip(map(id, params), answers, strict=True))
    optimizer = Unknown(params)
    attach_prox(optimizer, l1=0.5, weight_decay=2.0, metric=lambda param, state, group: given[id(param)])
    for param in params:
        param.grad = torch.zeros_like(param)
    steps = [torch.as_tensor(answer).double() for answer in answers]
    expected = [closed_form(p.detach(), 0.5 * s, 1 + 2.0 * s) for p, s in zip(params, steps, strict=True)]
    optimizer.step()
    for param, result in zip(params, expected, strict=True):
        torch.testing.assert_close(param.detach(), result, rtol=1e-7, atol=1e-9)
