"""Every mode's fixed point against an independent solver: the objective that is promised, or the one it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from sklearn.linear_model import Lasso
from torch import Tensor

import regkernels
from regkernels import backends, optim
from tests.support import problems

LINEAR, LOGISTIC = problems.linear(), problems.logistic()
L1, WEIGHT_DECAY, LOGISTIC_L1 = 0.1, 0.5, 0.02
CLOSE = 1e-9


class Rule(NamedTuple):
    make: Callable[..., torch.optim.Optimizer]
    options: dict[str, Any]
    gain: float  # c: by what a constant gradient is amplified
    ridge_options: dict[str, Any]  # what converges where all gradients vanish
    steps: int = 40_000  # at most

    def __call__(self, params: Any, **options: Any) -> torch.optim.Optimizer:
        return self.make(params, **{"weight_decay": 0.0, **self.options, **options})


# Without L1 the gradients of a ridge problem tend to 0, and Adam's step to lr / eps: eps must not be tiny.
RULES = {
    "sgd": Rule(optim.SGD, {"lr": 0.1}, 1.0, {}),
    "momentum": Rule(optim.SGD, {"lr": 0.05, "momentum": 0.9}, 10.0, {}),
    "dampening": Rule(optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}, 5.0, {}),
    "nesterov": Rule(optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}, 10.0, {}),
    "adam": Rule(optim.Adam, {"lr": 0.01}, 1.0, {"eps": 0.1}),
    "amsgrad": Rule(optim.Adam, {"lr": 0.01, "amsgrad": True}, 1.0, {"eps": 0.1}),
    "adamw": Rule(optim.AdamW, {"lr": 0.01}, 1.0, {"eps": 0.1}),
    "radam": Rule(optim.RAdam, {"lr": 0.01}, 1.0, {"eps": 0.1}),
    "rmsprop": Rule(optim.RMSprop, {"lr": 0.01, "alpha": 0.9}, 1.0, {"eps": 0.1}),
    "rmsprop_momentum": Rule(optim.RMSprop, {"lr": 1e-3, "alpha": 0.9, "momentum": 0.9}, 10.0, {"eps": 0.1}),
    "rmsprop_centered": Rule(optim.RMSprop, {"lr": 0.01, "centered": True, "eps": 0.1}, 1.0, {}),
    # Variances of 0 are known to 1e-17 only, and the buffer remembers the steps made of their roots: a large eps.
    "rmsprop_both": Rule(optim.RMSprop, {"lr": 0.1, "centered": True, "eps": 3.0, "momentum": 0.8}, 5.0, {}, 5000),
    "adagrad": Rule(optim.Adagrad, {"lr": 0.3}, 1.0, {"lr": 1.0}),
}
OBJECTIVES = {
    "lasso": (LINEAR, L1, 0.0),
    "elastic net": (LINEAR, L1, WEIGHT_DECAY),
    "ridge": (LINEAR, 0.0, WEIGHT_DECAY),
    "logistic l1": (LOGISTIC, LOGISTIC_L1, 0.0),
}
SOLUTIONS = {name: problems.solve(*objective) for name, objective in OBJECTIVES.items()}
MATRIX = [
    (rule, name, mode)
    for rule in RULES
    for name, (_, _, weight_decay) in OBJECTIVES.items()
    for mode in (["coupled", "prox"] if weight_decay or rule == "adamw" else [None])
]


def distance(w: Tensor, solution: Tensor) -> float:
    return (w - solution).abs().max().item()


def assert_solves(w: Tensor, solution: Tensor) -> None:
    assert distance(w, solution) < CLOSE
    assert torch.equal(w != 0, solution != 0)
    assert not torch.signbit(w[w == 0]).any()


def test_the_solutions_are_optimal_and_not_trivial() -> None:
    for name, (problem, l1, weight_decay) in OBJECTIVES.items():
        solution = SOLUTIONS[name]
        assert problems.optimality_violation(problem, solution, l1, weight_decay) < 1e-12
        zeros = int((solution == 0).sum())
        assert zeros == 0 if l1 == 0 else 4 < zeros < 9


@pytest.mark.parametrize("problem", [LINEAR, LOGISTIC], ids=["linear", "logistic"])
def test_the_closed_form_is_the_gradient_of_the_loss(problem: problems.Problem) -> None:
    w = torch.linspace(-1, 1, 12, dtype=torch.float64, requires_grad=True)
    problem.loss(problem.features @ w).backward()
    torch.testing.assert_close(w.grad, problem.gradient(w.detach()), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("rule", "name", "mode"), MATRIX)
def test_converges_to_the_solution(rule: str, name: str, mode: str | None) -> None:
    problem, l1, weight_decay = OBJECTIVES[name]
    options = dict(RULES[rule].ridge_options) if l1 == 0 else {}
    options.update(l1=l1, weight_decay=weight_decay, weight_decay_mode=mode)
    w = problems.minimise(problem, lambda params: RULES[rule](params, **options), steps=RULES[rule].steps)
    assert_solves(w, SOLUTIONS[name])
    assert problems.optimality_violation(problem, w, l1, weight_decay) < CLOSE


@pytest.mark.parametrize("rule", ["dampening", "amsgrad"])
def test_the_reference_converges_to_the_solution(rule: str) -> None:
    options = {"l1": L1, "weight_decay": WEIGHT_DECAY, "weight_decay_mode": "prox"}
    with backends.use("reference"):
        w = problems.minimise(LINEAR, lambda params: RULES[rule](params, **options))
    assert_solves(w, SOLUTIONS["elastic net"])


@pytest.mark.parametrize("mode", ["coupled", "prox"])
@pytest.mark.parametrize("rule", RULES)
def test_maximize_does_not_flip_the_penalty(rule: str, mode: str) -> None:
    options = {"l1": L1, "weight_decay": WEIGHT_DECAY, "weight_decay_mode": mode, "maximize": True}
    steps = RULES[rule].steps
    w = problems.minimise(LINEAR, lambda params: RULES[rule](params, **options), maximise=True, steps=steps)
    assert_solves(w, SOLUTIONS["elastic net"])


# RMSprop's buffer adds up steps that become smaller as the second moment grows: for a while it is larger than in the end,
# and passes the threshold.
FROM_ZERO = [rule for rule in RULES if rule not in ("rmsprop_momentum", "rmsprop_both")]


@pytest.mark.parametrize("problem", [LINEAR, LOGISTIC], ids=["linear", "logistic"])
@pytest.mark.parametrize("rule", FROM_ZERO)
def test_lambda_max_is_where_the_first_weight_appears(rule: str, problem: problems.Problem) -> None:
    # The first moves of RMSprop are up to ten times lr, and leave 0 where no more than twice lr is taken.
    limit = {"shrink_limit": None} if rule == "rmsprop" else {}

    def weights(l1: float) -> Tensor:
        return problems.minimise(problem, lambda params: RULES[rule](params, l1=l1, **limit), start=0.0, steps=2000)

    # A margin for the rounding of running averages: they may end an ulp above the gradient that they average.
    assert weights(problem.lambda_max * (1 + 1e-12)).count_nonzero() == 0
    first = weights(problem.lambda_max * 0.999)
    assert first.count_nonzero() == 1
    assert first.abs().argmax() == problem.gradient(torch.zeros_like(first)).abs().argmax()


def test_weights_go_to_zero_from_anywhere_above_lambda_max() -> None:
    for rule in RULES.values():
        l1, steps = 1.01 * LINEAR.lambda_max, rule.steps
        w = problems.minimise(LINEAR, lambda params, rule=rule, l1=l1: rule(params, l1=l1), steps=steps)
        assert w.count_nonzero() == 0


def test_autograd_two_groups_and_an_unpenalised_bias() -> None:
    targets = LINEAR.targets + 3.0
    expected = Lasso(alpha=L1, tol=1e-15, max_iter=100_000).fit(LINEAR.features.numpy(), targets.numpy())
    model = torch.nn.Linear(12, 1).double()
    optimizer = optim.SGD(regkernels.param_groups(model, weight_decay=0.0, l1=L1), lr=0.05, momentum=0.9)
    for _ in range(2000):
        optimizer.zero_grad()
        ((model(LINEAR.features).squeeze(1) - targets) ** 2).mean().div(2).backward()
        optimizer.step()
    assert_solves(model.weight.detach()[0], torch.from_numpy(expected.coef_))
    assert abs(model.bias.item() - expected.intercept_) < CLOSE


# --- what the other modes solve, and what they do not ---


@pytest.mark.parametrize("rule", ["sgd", "momentum", "dampening", "nesterov"])
def test_sgd_decoupled_l1_solves_the_lasso_with_l1_over_gain(rule: str) -> None:
    w = problems.minimise(LINEAR, lambda params: RULES[rule](params, l1=L1, l1_mode="decoupled"))
    gain = RULES[rule].gain
    assert_solves(w, problems.solve(LINEAR, L1 / gain, 0.0))
    assert gain == 1 or distance(w, SOLUTIONS["lasso"]) > 0.1


@pytest.mark.parametrize("rule", ["sgd", "momentum", "dampening", "nesterov"])
def test_sgd_decoupled_decay_solves_the_elastic_net_with_decay_over_gain(rule: str) -> None:
    options = {"l1": L1, "weight_decay": WEIGHT_DECAY, "weight_decay_mode": "decoupled"}
    w = problems.minimise(LINEAR, lambda params: RULES[rule](params, **options))
    gain = RULES[rule].gain
    assert_solves(w, problems.solve(LINEAR, L1, WEIGHT_DECAY / gain))
    assert gain == 1 or distance(w, SOLUTIONS["elastic net"]) > 0.1


@pytest.mark.parametrize("rule", ["adam", "amsgrad", "adamw", "radam", "rmsprop", "adagrad"])
def test_adaptive_decoupled_l1_is_not_the_lasso(rule: str) -> None:
    w = problems.minimise(LINEAR, lambda params: RULES[rule](params, l1=L1, l1_mode="decoupled"), steps=5000)
    assert distance(w, SOLUTIONS["lasso"]) > 0.1


def test_a_step_that_becomes_the_same_for_all_makes_decoupled_l1_a_lasso() -> None:
    """At rest there is no variance: centered RMSprop ends as gradient descent with the step lr / eps, and "decoupled", whose
    threshold is not divided by eps, solves the problem with l1 * eps / c."""
    rule = RULES["rmsprop_both"]
    options = {"l1": L1 * rule.gain / rule.options["eps"], "l1_mode": "decoupled"}
    w = problems.minimise(LINEAR, lambda params: rule(params, **options), steps=rule.steps)
    assert_solves(w, SOLUTIONS["lasso"])


def test_adamws_default_decay_with_l1_is_not_an_elastic_net() -> None:
    w = problems.minimise(LINEAR, lambda p: optim.AdamW(p, lr=0.01, l1=L1, weight_decay=WEIGHT_DECAY), steps=10_000)
    assert distance(w, SOLUTIONS["elastic net"]) > 0.1
    assert 0 < w.count_nonzero() < 12  # but its zeros are exact


@pytest.mark.parametrize(("rule", "lr"), [("sgd", 1e-2), ("momentum", 1e-3), ("adam", 1e-3)])
def test_subgradient_comes_near_without_zeros(rule: str, lr: float) -> None:
    options = {"l1": L1, "l1_mode": "subgradient", "lr": lr}
    w = problems.minimise(LINEAR, lambda params: RULES[rule](params, **options), steps=10_000)
    assert 1e-8 < distance(w, SOLUTIONS["lasso"]) < 5e-3
    assert w.count_nonzero() == 12


@pytest.mark.parametrize("rule", ["sgd", "nesterov", "amsgrad"])
def test_subgradient_is_a_penalty_in_the_loss(rule: str) -> None:
    """The same weights as `regkernels.l1_penalty` in the loss gives, step by step."""
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 12, dtype=torch.float64)) for _ in range(2))
    in_step, in_loss = RULES[rule]([ours], l1=L1, l1_mode="subgradient"), RULES[rule]([theirs])
    for _ in range(50):
        for w, optimizer in ((ours, in_step), (theirs, in_loss)):
            optimizer.zero_grad()
            loss = LINEAR.loss(LINEAR.features @ w)
            (loss + regkernels.l1_penalty(w, L1) if optimizer is in_loss else loss).backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
