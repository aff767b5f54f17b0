"""The solver of small linear models: its exact steps against all choices of signs, its features against the centred columns."""

from __future__ import annotations

import itertools

import numpy
import pytest
import torch
from scipy.optimize import nnls
from sklearn.linear_model import LogisticRegression, lasso_path
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, huber_loss

from regkernels.selection import regularization_path, subdiff_distance
from regkernels.selection.active_set import lasso
from regkernels.selection.data import Batches
from regkernels.selection.features import features
from regkernels.selection.objective import Objective
from tests.selection.common import LINEAR, X, Y, half_mse, linear_model, path


def by_brute_force(matrix: numpy.ndarray, right: numpy.ndarray, thresholds: numpy.ndarray, *, positive: bool) -> float:
    """Returns the smallest value of all choices of signs, of which the minimum is one."""
    best = 0.0
    for signs in itertools.product([0, 1] if positive else [-1, 0, 1], repeat=len(right)):
        on = numpy.flatnonzero(signs)
        x = numpy.zeros(len(right))
        x[on] = numpy.linalg.lstsq(matrix[numpy.ix_(on, on)], (right - thresholds * signs)[on], rcond=None)[0]
        if not positive or (x >= 0).all():
            best = min(best, value(matrix, right, thresholds, x))
    return best


def value(matrix: numpy.ndarray, right: numpy.ndarray, thresholds: numpy.ndarray, x: numpy.ndarray) -> float:
    return float(x @ matrix @ x / 2 - right @ x + thresholds @ abs(x))


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("rank", [2, 5])
def test_small_lassos_are_solved_exactly(rank: int, positive: bool) -> None:
    """Also with fewer rows than weights, where the matrix is singular."""
    draws = numpy.random.default_rng(rank)
    for _ in range(20):
        rows, start = draws.normal(size=(rank, 5)), draws.normal(size=5)
        matrix, right, thresholds = rows.T @ rows, rows.T @ draws.normal(size=rank), draws.uniform(0.01, 0.5, size=5)
        found = lasso(matrix, right, thresholds, abs(start) if positive else start, positive=positive)
        expected = by_brute_force(matrix, right, thresholds, positive=positive)
        assert value(matrix, right, thresholds, found) == pytest.approx(expected, abs=1e-9)
        assert not positive or (found >= 0).all()


def test_weights_without_a_threshold_are_free() -> None:
    matrix = numpy.array([[2.0, 0.5], [0.5, 1.0]])
    found = lasso(matrix, numpy.array([1.0, 0.3]), numpy.array([0.0, 10.0]), numpy.zeros(2))
    numpy.testing.assert_allclose(found, [0.5, 0.0], atol=1e-12)


def test_features_are_centred_scaled_and_give_the_outputs_back() -> None:
    inputs = 1e6 + 10.0 ** torch.arange(-6, 6) * X
    model = linear_model()
    objective = Objective(model, half_mse, Batches("data", (inputs, Y)))
    found = features(objective)
    assert found is not None
    centred = (inputs - inputs.mean(0)) / inputs.std(0, correction=0)
    # Of the first column, as wide as 1e-12 of its mean, four digits are left.
    torch.testing.assert_close(found.columns[:, 3:], centred[:, 3:], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.columns.square().mean(0), torch.ones(12, dtype=torch.float64))
    weight = model.weight.detach()[0]
    free = model.bias.detach() + found.shift @ weight
    again = found.constant + found.columns @ (weight / found.inverse) + found.others @ free
    torch.testing.assert_close(again, model(inputs).detach()[:, 0], rtol=1e-9, atol=0)


class Softmax(nn.Module):
    """Linear in its weights, of which it has two tensors, with a part that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 3).double(), nn.Linear(7, 3, bias=False).double()
        self.register_buffer("offset", torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x[:, :5]) + self.second(x[:, 5:]) + self.offset


def test_several_outputs_satisfy_the_optimality_conditions() -> None:
    labels = (LINEAR.targets.argsort().argsort() * 3) // len(X)
    model = Softmax()
    ours = regularization_path(model, cross_entropy, (X * 10.0 ** torch.linspace(-2, 2, 12), labels), n_lambdas=8)
    assert ours.converged.all() and ours.steps.max() < 12 and 0 < ours.nonzeros[-1] < 36
    for index, strength in enumerate(ours.lambdas.tolist()):
        again = ours.load(model, index)
        cross_entropy(again(X * 10.0 ** torch.linspace(-2, 2, 12)), labels).backward()
        for weight in (again.first.weight, again.second.weight):
            assert weight.grad is not None
            excess = torch.where(weight == 0, weight.grad.abs() - strength, weight.grad + strength * weight.sign())
            assert excess.max() <= 1e-8 * ours.lambdas[0]
        again.zero_grad()


def test_raw_columns_of_a_logistic_regression_are_scikit_learns_scaled_ones() -> None:
    """Its solvers need columns of one size, which a fit of this one by weights of the penalty makes them."""
    sizes = 10.0 ** torch.linspace(-3, 3, 12, dtype=torch.float64)
    labels = (Y.median() < Y).double()
    ours = regularization_path(
        linear_model(), binary_cross_entropy_with_logits, (X * sizes, labels), [0.02], l1_weights=[sizes[None]]
    )
    theirs = LogisticRegression(C=1 / (60 * 0.02), l1_ratio=1.0, solver="saga", tol=1e-12, max_iter=100_000)
    expected = theirs.fit(X.numpy(), labels[:, 0].numpy()).coef_[0]
    numpy.testing.assert_allclose(ours.weights[0] * sizes, expected, rtol=0, atol=1e-7)


def test_without_a_strength_what_must_not_be_negative_is_non_negative_least_squares() -> None:
    expected, _ = nnls((X - X.mean(0)).numpy(), (Y - Y.mean()).numpy()[:, 0])
    ours = regularization_path(linear_model(), half_mse, (X, Y), [0.0], positive=True)
    assert ours.converged.all() and 0 < (expected == 0).sum() < 12
    numpy.testing.assert_allclose(ours.weights[0], expected, rtol=0, atol=1e-9)


def test_many_more_weights_than_rows() -> None:
    torch.manual_seed(2)
    x = torch.randn(30, 500, dtype=torch.float64)
    y = x[:, :4].sum(1, keepdim=True) + torch.randn(30, 1, dtype=torch.float64)
    ours = regularization_path(nn.Linear(500, 1).double(), half_mse, (x, y), n_lambdas=10)
    centred, targets = (x - x.mean(0)).numpy(), (y - y.mean()).numpy()[:, 0]
    _, weights, _ = lasso_path(centred, targets, alphas=ours.lambdas.numpy(), tol=1e-14, max_iter=100_000)
    assert ours.converged.all() and ours.nonzeros[-1] > 20
    numpy.testing.assert_allclose(ours.weights, weights.T, atol=1e-7)


def test_targets_far_from_their_spread() -> None:
    """Of 1.7e9 float64 has seven digits behind the point, and the violation fewer."""
    ours = regularization_path(linear_model(), half_mse, (X, 1.7e9 + Y), [0.1])
    assert ours.converged.all() and ours.steps[0] < 10
    torch.testing.assert_close(ours.weights, path([0.1]).weights, rtol=0, atol=1e-6)


def test_a_loss_without_curvature_where_the_path_starts() -> None:
    """All residuals are in the straight part of the loss, where Newton's method has nothing to go by."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return huber_loss(output, target, delta=0.5)

    targets = Y + torch.where(Y.median() < Y, 100.0, -100.0)
    ours = regularization_path(linear_model(), loss, (X, targets), n_lambdas=3, lambda_min_ratio=0.1)
    assert ours.converged.all() and ours.nonzeros[-1] > 0
    again = ours.load(linear_model(), 2)
    loss(again(X), targets).backward()
    assert again.weight.grad is not None
    distance = subdiff_distance(again.weight.detach(), again.weight.grad, ours.lambdas[2].item())
    assert distance.max() <= 1e-8


def test_a_loss_that_is_not_convex_goes_on_with_steps_that_are() -> None:
    def bounded(output: Tensor, target: Tensor) -> Tensor:
        return (1 - torch.exp(-(output - target).square() / 2)).mean()

    ours = regularization_path(linear_model(), bounded, (X, Y), [0.02, 0.005])
    assert ours.converged.all() and ours.nonzeros[1] > 0
