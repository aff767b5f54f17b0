"""What docs/migration.md says of others' strengths: converted as it says, training ends at their solution, or steps as they do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import (
    ElasticNet,
    Lasso,
    LogisticRegression,
    MultiTaskLasso,
    Ridge,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import regkernels as rk
from tests.support import problems

Array = NDArray[numpy.float64]

LINEAR, LOGISTIC = problems.linear(), problems.logistic()
N = len(LINEAR.targets)
ALPHA, RATIO, C = 0.1, 0.3, 0.4
EXACT: dict[str, Any] = {"fit_intercept": False, "tol": 1e-14, "max_iter": 100_000}


class Conversion(NamedTuple):
    theirs: Callable[[Array, Array], Array]  # (features, targets) -> weights
    ours: dict[str, Any]  # keys of a param group
    problem: problems.Problem = LINEAR


def fitted(model: Any) -> Callable[[Array, Array], Array]:
    return lambda x, y: model.fit(x, y).coef_


def standardised(model: Any) -> Callable[[Array, Array], Array]:
    """As glmnet does: columns are divided by their standard deviation before, and so are coefficients afterwards."""

    def weights(x: Array, y: Array) -> Array:
        pipeline = make_pipeline(StandardScaler(with_mean=False), model).fit(x, y)
        return numpy.asarray(pipeline[-1].coef_ / pipeline[0].scale_)

    return weights


def with_sum_of_squares(l2: float) -> Callable[[Array, Array], Array]:
    """The minimiser of the mean of squares / 2, plus ``l2 * sum w**2``, in closed form."""
    return lambda x, y: numpy.linalg.solve(x.T @ x / len(y) + 2 * l2 * numpy.eye(x.shape[1]), x.T @ y / len(y))


def pruning_aware(reg_lambda: float, momentum: float) -> Callable[[Array, Array], Array]:
    """torchao's PruneOptimizer over SGD: a latent copy is stepped, and shrunk by all learning rates so far."""

    def weights(x: Array, y: Array) -> Array:
        latent, buffer, gamma, lr = numpy.ones(x.shape[1]), numpy.zeros(x.shape[1]), 0.0, 0.02
        w = latent
        for _ in range(4000):
            buffer = momentum * buffer + x.T @ (x @ w - y) / len(y)
            latent, gamma = latent - lr * buffer, gamma + lr
            w = numpy.sign(latent) * numpy.maximum(numpy.abs(latent) - reg_lambda * gamma, 0)
        return w

    return weights


DEVIATIONS = LINEAR.features.std(dim=0, correction=0)
LOGISTIC_EXACT = EXACT | {"solver": "saga"}
CONVERSIONS = {
    "sklearn Lasso": Conversion(fitted(Lasso(ALPHA, **EXACT)), {"l1": ALPHA}),
    "sklearn Lasso, positive": Conversion(
        fitted(Lasso(ALPHA, positive=True, **EXACT)), {"l1": ALPHA, "positive": True}
    ),
    "sklearn ElasticNet": Conversion(
        fitted(ElasticNet(ALPHA, l1_ratio=RATIO, **EXACT)),
        {"l1": ALPHA * RATIO, "weight_decay": ALPHA * (1 - RATIO)},
    ),
    "sklearn Ridge": Conversion(fitted(Ridge(7.0, fit_intercept=False, solver="cholesky")), {"weight_decay": 7.0 / N}),
    "sklearn LogisticRegression": Conversion(
        fitted(LogisticRegression(C=C, l1_ratio=0.0, **LOGISTIC_EXACT)), {"weight_decay": 1 / (N * C)}, LOGISTIC
    ),
    "sklearn LogisticRegression, l1": Conversion(
        fitted(LogisticRegression(C=C, l1_ratio=1.0, **LOGISTIC_EXACT)), {"l1": 1 / (N * C)}, LOGISTIC
    ),
    "sklearn LogisticRegression, elastic net": Conversion(
        fitted(LogisticRegression(C=C, l1_ratio=RATIO, **LOGISTIC_EXACT)),
        {"l1": RATIO / (N * C), "weight_decay": (1 - RATIO) / (N * C)},
        LOGISTIC,
    ),
    "glmnet, standardize": Conversion(standardised(Lasso(ALPHA, **EXACT)), {"l1": ALPHA, "l1_weights": [DEVIATIONS]}),
    "torchao ProxLasso": Conversion(pruning_aware(10 * ALPHA, momentum=0.9), {"l1": (1 - 0.9) * 10 * ALPHA}),
    "Keras L2": Conversion(with_sum_of_squares(0.05), {"weight_decay": 2 * 0.05}),
}


@pytest.mark.parametrize("mode", ["coupled", "prox"])
@pytest.mark.parametrize("name", CONVERSIONS)
def test_converted_strengths_have_the_same_solution(name: str, mode: str) -> None:
    theirs, ours, problem = CONVERSIONS[name]
    options = {"weight_decay_mode": mode, **ours}
    w = problems.minimise(problem, lambda params: rk.optim.SGD(params, lr=0.05, momentum=0.9, **options))
    expected = torch.from_numpy(numpy.ravel(theirs(problem.features.numpy(), problem.targets.numpy())))
    torch.testing.assert_close(w, expected, rtol=0, atol=1e-6)
    assert torch.equal(w == 0, expected == 0)


def test_a_loss_without_one_half_takes_twice_the_strength() -> None:
    w = torch.nn.Parameter(torch.zeros_like(LINEAR.features[0]))
    optimizer = rk.optim.SGD([w], lr=0.02, momentum=0.9, l1=2 * ALPHA)
    for _ in range(2000):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(LINEAR.features @ w, LINEAR.targets).backward()
        optimizer.step()
    torch.testing.assert_close(w.detach(), problems.solve(LINEAR, ALPHA, 0.0), rtol=0, atol=1e-6)


def test_several_tasks_select_columns() -> None:
    tasks = torch.stack([LINEAR.targets, LINEAR.features @ LINEAR.features[0] / 8, -0.5 * LINEAR.targets.roll(1)], 1)
    model = MultiTaskLasso(0.4, **EXACT).fit(LINEAR.features.numpy(), tasks.numpy())
    w = torch.nn.Parameter(torch.zeros(3, 12, dtype=torch.float64))
    optimizer = rk.optim.SGD([w], lr=0.05, momentum=0.9, group_l1=0.4, group_dim=1, group_weight="ones", stats=True)
    for _ in range(1000):
        w.grad = (w.detach() @ LINEAR.features.T - tasks.T) @ LINEAR.features / N
        optimizer.step()
    torch.testing.assert_close(w.detach(), torch.from_numpy(model.coef_), rtol=0, atol=1e-6)
    stats = optimizer.stats
    assert stats is not None and 0 < stats.zero_groups.item() == int((model.coef_ == 0).all(axis=0).sum())


@pytest.mark.parametrize("problem", [LINEAR, LOGISTIC], ids=["SGDRegressor", "SGDClassifier"])
def test_sgd_of_sklearn_steps_alike(problem: problems.Problem) -> None:
    """Their SGD does not come to rest, so this compares an epoch of it, row after row."""
    loss, make = ("log_loss", SGDClassifier) if problem.logistic else ("squared_error", SGDRegressor)
    model = make(loss, penalty="l2", alpha=0.1, learning_rate="constant", eta0=0.05, shuffle=False, fit_intercept=False)
    model.partial_fit(
        problem.features.numpy(), problem.targets.numpy(), **({"classes": [0, 1]} if problem.logistic else {})
    )
    w = torch.nn.Parameter(torch.zeros_like(problem.features[0]))
    optimizer = rk.optim.SGD([w], lr=0.05, weight_decay=0.1)
    for row, target in zip(problem.features, problem.targets, strict=True):
        optimizer.zero_grad()
        problem._replace(targets=target).loss(row @ w).backward()
        optimizer.step()
    torch.testing.assert_close(w.detach(), torch.from_numpy(model.coef_.ravel()), rtol=0, atol=1e-12)


def proximal_gradient_descent(lr: float, l1: float, l2: float) -> Callable[[Array, Array], Array]:
    """A step of tf.compat.v1.train.ProximalGradientDescentOptimizer, as its operation is documented."""

    def step(w: Array, g: Array) -> Array:
        v = w - lr * g
        return numpy.sign(v) / (1 + lr * l2) * numpy.maximum(numpy.abs(v) - lr * l1, 0)

    return step


def proximal_adagrad(lr: float, l1: float, l2: float) -> Callable[[Array, Array], Array]:
    """The same of ProximalAdagradOptimizer: in the shrinkage, too, lr is the adapted one."""
    accumulator = numpy.full(12, 0.1)

    def step(w: Array, g: Array) -> Array:
        nonlocal accumulator
        accumulator = accumulator + g**2
        s = lr / numpy.sqrt(accumulator)
        v = w - s * g
        return numpy.sign(v) / (1 + s * l2) * numpy.maximum(numpy.abs(v) - s * l1, 0)

    return step


def lassonet_path(lr: float, l1: float, l2: float) -> Callable[[Array, Array], Array]:
    """torch.optim.SGD with momentum 0.9, and after each step a threshold of ``lr * l1``."""
    assert l2 == 0
    momentum = numpy.zeros(12)

    def step(w: Array, g: Array) -> Array:
        nonlocal momentum
        momentum = 0.9 * momentum + g
        v = w - lr * momentum
        return numpy.sign(v) * numpy.maximum(numpy.abs(v) - lr * l1, 0)

    return step


def _sgd(params: list[Tensor], l1: float, l2: float) -> rk.optim.Optimizer:
    return rk.optim.SGD(params, lr=0.05, l1=l1, weight_decay=l2, weight_decay_mode="prox")


def _adagrad(params: list[Tensor], l1: float, l2: float) -> rk.optim.Optimizer:
    return rk.optim.Adagrad(
        params, lr=0.05, initial_accumulator_value=0.1, eps=0.0, l1=l1, weight_decay=l2, weight_decay_mode="prox"
    )


def _momentum(params: list[Tensor], l1: float, l2: float) -> rk.optim.Optimizer:
    return rk.optim.SGD(params, lr=0.05, momentum=0.9, l1=l1, l1_mode="decoupled")


STEPS = {
    "TensorFlow ProximalGradientDescent": (proximal_gradient_descent, _sgd, 0.3),
    "TensorFlow ProximalAdagrad": (proximal_adagrad, _adagrad, 0.3),
    "threshold lr * l1 after momentum": (lassonet_path, _momentum, 0.0),
}


@pytest.mark.parametrize("name", STEPS)
def test_converted_strengths_make_the_same_steps(name: str) -> None:
    make_step, make_optimizer, l2 = STEPS[name]
    step = make_step(0.05, 0.2, l2)
    expected = numpy.linspace(-0.2, 0.3, 12)
    w = torch.nn.Parameter(torch.from_numpy(expected.copy()))
    optimizer = make_optimizer([w], 0.2, l2)
    for _ in range(8):
        expected = step(expected, LINEAR.gradient(torch.from_numpy(expected)).numpy())
        w.grad = LINEAR.gradient(w.detach())
        optimizer.step()
    torch.testing.assert_close(w.detach(), torch.from_numpy(expected), rtol=0, atol=1e-12)
    assert 0 < w.count_nonzero() < 12


X = torch.linspace(-3, 3, 61, dtype=torch.float64)
LAM, GAM, SCALING = 0.8, 0.5, 1.7
OBJECTIVES: dict[str, tuple[Tensor, Callable[[Tensor], Tensor], float]] = {
    "jaxopt prox_lasso(x, lam, scaling)": (
        rk.prox.soft_threshold(X, LAM * SCALING),
        lambda y: SCALING * LAM * y.abs(),
        -numpy.inf,
    ),
    "jaxopt prox_elastic_net(x, (lam, gam), scaling)": (
        rk.prox.elastic_net(X, LAM, LAM * GAM, step=SCALING),
        lambda y: SCALING * LAM * (y.abs() + GAM / 2 * y**2),
        -numpy.inf,
    ),
    "jaxopt prox_ridge(x, lam, scaling)": (
        rk.prox.elastic_net(X, 0.0, LAM, step=SCALING),
        lambda y: SCALING * LAM / 2 * y**2,
        -numpy.inf,
    ),
    "jaxopt prox_non_negative_lasso(x, lam, scaling)": (
        rk.prox.positive(X, LAM, step=SCALING),
        lambda y: SCALING * LAM * y.abs(),
        0.0,
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_operators_minimise_what_the_others_document(name: str) -> None:
    ours, penalty, lowest = OBJECTIVES[name]
    candidates = torch.linspace(-4, 4, 8001, dtype=torch.float64)
    candidates = candidates[candidates >= lowest]
    assert (ours >= lowest).all()
    best = ((candidates - X[:, None]) ** 2 / 2 + penalty(candidates)).min(dim=1)
    assert ((ours - X) ** 2 / 2 + penalty(ours) <= best.values + 1e-12).all()
    torch.testing.assert_close(ours, candidates[best.indices], rtol=0, atol=0.001)
