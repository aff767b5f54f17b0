"""What torch's optimizers solve with `attach_prox`: scikit-learn's lasso and elastic net, with the same zeros."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.linear_model import Lasso
from torch import Tensor

import regkernels
from regkernels import attach_prox, backends
from tests.support import problems

LINEAR, LOGISTIC = problems.linear(), problems.logistic()
L1, WEIGHT_DECAY, LOGISTIC_L1 = 0.1, 0.5, 0.02
CLOSE = 1e-9
LASSO, ELASTIC_NET = problems.solve(LINEAR, L1, 0.0), problems.solve(LINEAR, L1, WEIGHT_DECAY)
LOGISTIC_LASSO = problems.solve(LOGISTIC, LOGISTIC_L1, 0.0)

Make = Callable[[Any], torch.optim.Optimizer]


class Adamish(torch.optim.Adam):
    """Makes Adam's step in a method of its own, as optimizers of other libraries do."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                if not state:
                    state.update(step=0, exp_avg=torch.zeros_like(param), exp_avg_sq=torch.zeros_like(param))
                beta1, beta2 = group["betas"]
                state["step"] += 1
                state["exp_avg"].lerp_(param.grad, 1 - beta1)
                state["exp_avg_sq"].lerp_(param.grad**2, 1 - beta2)
                root = (state["exp_avg_sq"] / (1 - beta2 ** state["step"])).sqrt() + group["eps"]
                param -= group["lr"] * state["exp_avg"] / (1 - beta1 ** state["step"]) / root


class Diagonal(torch.optim.Optimizer):
    """Gradient descent in a metric that no optimizer of torch has."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                self.state[param]["preconditioner"] = torch.linspace(0.3, 1.5, len(param), dtype=param.dtype)
                param -= group["lr"] * self.state[param]["preconditioner"] * param.grad


def of(name: str, **options: Any) -> Make:
    return lambda params: getattr(torch.optim, name)(params, **options)


OPTIMIZERS: dict[str, Make] = {
    "adam": of("Adam", lr=0.01),
    "adam, one tensor at a time": of("Adam", lr=0.01, foreach=False),
    "adam, fused": of("Adam", lr=0.01, fused=True),
    "adam, amsgrad": of("Adam", lr=0.01, amsgrad=True),
    "adamw": of("AdamW", lr=0.01, weight_decay=0.0),
    "nadam": of("NAdam", lr=0.01),
    "nadam, slow": of("NAdam", lr=0.01, momentum_decay=1e-3),
    "radam": of("RAdam", lr=0.01),
    "adamax": of("Adamax", lr=0.01),
    "rmsprop": of("RMSprop", lr=0.003),
    "rmsprop, momentum": of("RMSprop", lr=0.001, momentum=0.9),
    "rmsprop, centered": of("RMSprop", lr=0.01, centered=True, eps=0.1),
    "adagrad": of("Adagrad", lr=0.5),
    "adagrad, decay": of("Adagrad", lr=0.5, lr_decay=1e-4, initial_accumulator_value=0.1),
    "sgd": of("SGD", lr=0.1),
    "sgd, momentum": of("SGD", lr=0.05, momentum=0.9),
    "sgd, dampening": of("SGD", lr=0.1, momentum=0.9, dampening=0.5),
    "sgd, nesterov": of("SGD", lr=0.05, momentum=0.9, nesterov=True),
}


def solved_by(
    make: Make, problem: problems.Problem = LINEAR, maximise: bool = False, steps: int = 40_000, **options: Any
) -> Tensor:
    def attached(params: list[Tensor]) -> torch.optim.Optimizer:
        optimizer = make(params)
        attach_prox(optimizer, **options)
        return optimizer

    return problems.minimise(problem, attached, maximise=maximise, steps=steps)


def assert_solves(w: Tensor, solution: Tensor) -> None:
    assert (w - solution).abs().max().item() < CLOSE
    assert torch.equal(w != 0, solution != 0)
    assert not torch.signbit(w[w == 0]).any()
    assert 4 < int((solution == 0).sum()) < 9


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_lasso_is_solved(name: str) -> None:
    assert_solves(solved_by(OPTIMIZERS[name], l1=L1), LASSO)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_elastic_net_is_solved(name: str) -> None:
    assert_solves(solved_by(OPTIMIZERS[name], l1=L1, weight_decay=WEIGHT_DECAY), ELASTIC_NET)


@pytest.mark.parametrize("name", ["adam", "nadam", "sgd, dampening"])
def test_logistic_regression_is_solved(name: str) -> None:
    assert_solves(solved_by(OPTIMIZERS[name], LOGISTIC, l1=LOGISTIC_L1), LOGISTIC_LASSO)


def test_the_reference_solves_it() -> None:
    with backends.use("reference"):
        assert_solves(solved_by(OPTIMIZERS["adam, amsgrad"], l1=L1, weight_decay=WEIGHT_DECAY), ELASTIC_NET)


@pytest.mark.parametrize("name", ["Adam", "RMSprop", "Adagrad", "SGD"])
def test_the_optimizers_own_weight_decay_is_part_of_the_problem(name: str) -> None:
    make = of(name, lr=0.3 if name == "Adagrad" else 0.01, weight_decay=WEIGHT_DECAY)
    assert_solves(solved_by(make, l1=L1), ELASTIC_NET)


def test_maximize_does_not_flip_the_penalty() -> None:
    w = solved_by(of("Adam", lr=0.01, maximize=True), maximise=True, l1=L1, weight_decay=WEIGHT_DECAY)
    assert_solves(w, ELASTIC_NET)


def test_optimizers_that_are_like_a_known_one() -> None:
    def make(params: Any) -> torch.optim.Optimizer:
        return Adamish(params, lr=0.01)

    with pytest.raises(ValueError, match="metric='adam'"):
        attach_prox(make([torch.nn.Parameter(torch.zeros(1))]), l1=L1)
    assert_solves(solved_by(make, l1=L1, metric="adam"), LASSO)


def test_a_metric_of_ones_own() -> None:
    def metric(param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        return group["lr"] * state["preconditioner"]

    assert_solves(solved_by(Diagonal, l1=L1, weight_decay=WEIGHT_DECAY, metric=metric), ELASTIC_NET)
    assert_solves(solved_by(OPTIMIZERS["sgd"], l1=L1, metric=lambda param, state, group: group["lr"]), LASSO)


def test_decoupled_is_the_lasso_for_plain_gradient_descent_only() -> None:
    decoupled: dict[str, Any] = {"l1": L1, "l1_mode": "decoupled"}
    assert_solves(solved_by(OPTIMIZERS["sgd"], **decoupled), LASSO)
    assert_solves(solved_by(OPTIMIZERS["sgd, momentum"], **{**decoupled, "l1": 10 * L1}), LASSO)
    assert (solved_by(OPTIMIZERS["adam"], steps=2000, **decoupled) - LASSO).abs().max() > 0.1


def test_muon_gets_zeros() -> None:
    """Its steps are orthogonal matrices: there is no metric, and no lasso, but a weight that nothing needs becomes zero."""
    w = torch.nn.Parameter(torch.randn(6, 4))
    optimizer = torch.optim.Muon([w], lr=0.01, weight_decay=0.0)
    with pytest.raises(ValueError, match="Muon"):
        attach_prox(optimizer, l1=L1)
    attach_prox(optimizer, l1=0.5, l1_mode="decoupled")
    for _ in range(3):
        before = w.detach().clone()
        twin = torch.nn.Parameter(before.clone())
        w.grad = twin.grad = torch.randn(6, 4)
        plain = torch.optim.Muon([twin], lr=0.01, weight_decay=0.0)
        plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        optimizer.step()
        plain.step()
        expected = twin.detach().sign() * (twin.detach().abs() - 0.005).clamp(min=0)
        torch.testing.assert_close(w.detach(), expected, rtol=1e-6, atol=1e-7)


def test_autograd_and_an_unpenalised_bias() -> None:
    targets = LINEAR.targets + 3.0
    expected = Lasso(alpha=L1, tol=1e-15, max_iter=100_000).fit(LINEAR.features.numpy(), targets.numpy())
    model = torch.nn.Linear(12, 1).double()
    optimizer = torch.optim.NAdam(regkernels.param_groups(model, l1=L1), lr=0.03)
    attach_prox(optimizer)
    for _ in range(3000):
        optimizer.zero_grad()
        ((model(LINEAR.features).squeeze(1) - targets) ** 2).mean().div(2).backward()
        optimizer.step()
    assert_solves(model.weight.detach()[0], torch.from_numpy(expected.coef_))
    assert abs(model.bias.item() - expected.intercept_) < CLOSE
