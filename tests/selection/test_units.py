"""Columns of any unit and centre, weights of rows, kinks: what must not hide a coefficient from the path."""

from __future__ import annotations

import numpy
import pytest
import torch
from sklearn.datasets import load_diabetes, load_wine
from sklearn.linear_model import Lasso, lasso_path
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss, smooth_l1_loss
from torch.nn.utils import parametrizations, prune, spectral_norm

from regkernels.selection import lambda_max, regularization_path
from tests.selection.common import X, Y, half_mse, linear_model, path

per_row = nn.MSELoss(reduction="none")


def linear(columns: int) -> nn.Linear:
    return nn.Linear(columns, 1).double()


def test_a_coefficient_is_found_beside_a_column_in_other_units() -> None:
    draws = numpy.random.default_rng(0).normal(size=(200, 3))
    features = numpy.stack([1e5 + 2e4 * draws[:, 0], 0.05 + 0.01 * draws[:, 1]], 1)
    targets = features @ [2e-5, 50] + 0.1 * draws[:, 2]
    data = torch.from_numpy(features), torch.from_numpy(targets)[:, None]
    expected = Lasso(1e-4, tol=1e-14, max_iter=100_000).fit(features, targets).coef_
    ours = regularization_path(linear(2), half_mse, data, [1e-4])
    assert expected[1] > 45 and ours.converged.all()
    numpy.testing.assert_allclose(ours.weights[0], expected, rtol=1e-6)


@pytest.mark.parametrize("load", [load_wine, lambda **of: load_diabetes(scaled=False, **of)], ids=["wine", "diabetes"])
def test_raw_data_is_scikit_learns_path_in_a_step_or_two_each(load: type) -> None:
    features, targets = load(return_X_y=True)
    ours = regularization_path(
        linear(features.shape[1]),
        half_mse,
        (torch.tensor(features), torch.tensor(targets)[:, None].double()),
        n_lambdas=20,
    )
    _, weights, _ = lasso_path(
        features - features.mean(0),
        targets - targets.mean(),
        alphas=ours.lambdas.numpy(),
        tol=1e-13,
        max_iter=1_000_000,
    )
    assert ours.converged.all() and ours.steps.sum() < 100
    numpy.testing.assert_allclose(ours.weights.numpy() * features.std(0), weights.T * features.std(0), atol=1e-5)


def test_columns_and_targets_far_from_their_spread() -> None:
    """Seconds since 1970 within a minute, on both sides, and a column that is one large number."""
    features, targets = 1.7e9 + 17 * X, 1.7e9 + 17 * Y
    constant = torch.cat([features, torch.full_like(Y, 1.7e18)], 1)
    centred = (features - features.mean(0)).T @ (targets - targets.mean()) / len(X)
    expected = centred.abs().max().item()
    assert lambda_max(linear_model(), half_mse, (features, targets)) == pytest.approx(expected, rel=1e-6)
    assert lambda_max(linear(13), half_mse, (constant, targets)) == pytest.approx(expected, rel=1e-6)
    ours = regularization_path(linear(13), half_mse, (constant, targets), n_lambdas=5)
    assert ours.converged.all() and not ours.weights[:, 12].any()
    torch.testing.assert_close(ours.weights[:, :12], path(n_lambdas=5).weights, rtol=0, atol=1e-5)


def test_positive_paths_start_where_a_weight_becomes_positive() -> None:
    features = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    data = features, features @ torch.tensor([[1.0], [-1000.0]], dtype=torch.float64)
    model = nn.Linear(2, 1, bias=False).double()
    assert lambda_max(model, half_mse, data, positive=True) == pytest.approx(1)
    assert lambda_max(model, half_mse, data) == pytest.approx(1000)
    ours = regularization_path(model, half_mse, data, n_lambdas=4, positive=True)
    expected = torch.stack([1 - ours.lambdas, torch.zeros(4, dtype=torch.float64)], 1)
    torch.testing.assert_close(ours.weights, expected, rtol=0, atol=1e-9)


def test_rows_count_as_their_weights_say_and_those_of_weight_zero_are_not_read() -> None:
    weights = torch.linspace(0, 2, len(X), dtype=torch.float64).floor() + 0.5 * (torch.arange(len(X)) % 2)
    features, targets = X.clone(), Y.clone()
    features[weights == 0], targets[weights == 0] = torch.nan, 1e20
    centre = (weights[:, None] * X).sum(0) / weights.sum(), (weights[:, None] * Y).sum() / weights.sum()
    products = (X - centre[0]).T @ (weights[:, None] * (Y - centre[1])) / weights.sum()
    found = lambda_max(linear_model(), per_row, (features, targets), sample_weight=weights)
    assert found == pytest.approx(2 * products.abs().max().item(), rel=1e-10)
    ours = regularization_path(linear_model(), per_row, (features, targets), [0.4, 0.1], sample_weight=weights)
    for row, strength in zip(ours.weights, ours.lambdas.tolist(), strict=True):
        theirs = Lasso(strength / 2, tol=1e-14, max_iter=100_000).fit(X.numpy(), Y[:, 0].numpy(), weights.numpy())
        numpy.testing.assert_allclose(row, theirs.coef_, atol=1e-8)


def test_scores_of_other_data_know_nothing_of_the_weights() -> None:
    """Not even where there are as many rows of them."""
    weights = torch.linspace(0, 2, len(X), dtype=torch.float64)
    ours = regularization_path(linear_model(), per_row, (X, Y), [0.1], sample_weight=weights, validation=(X, Y))
    outputs = X @ ours.weights[0] + ours.states["bias"][0]
    assert ours.scores is not None
    assert ours.scores[0] == pytest.approx(-(outputs - Y[:, 0]).square().mean().item(), rel=1e-12)


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        (-torch.ones(60), "sample_weight must be finite and >= 0"),
        (torch.ones(60) * torch.nan, "sample_weight must be finite and >= 0"),
        (torch.zeros(60), "sample_weight is 0 for all rows"),
        (torch.ones(59), r"one number for each of the 60 rows, got shape \(59,\)"),
    ],
)
def test_bad_sample_weights(weights: Tensor, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        lambda_max(linear_model(), per_row, (X, Y), sample_weight=weights)
    with pytest.raises(ValueError, match=text):
        regularization_path(linear_model(), per_row, (X, Y), sample_weight=weights)


def test_sample_weights_need_losses_of_rows_and_tensors() -> None:
    with pytest.raises(ValueError, match='reduction="none"'):
        lambda_max(linear_model(), mse_loss, (X, Y), sample_weight=torch.ones(60))
    with pytest.raises(TypeError, match="pair of tensors, not with batches"):
        lambda_max(linear_model(), per_row, [(X, Y)], sample_weight=torch.ones(60))


def test_losses_with_kinks_are_refused_and_smooth_ones_without_curvature_are_not() -> None:
    for call in (lambda_max, regularization_path):
        with pytest.raises(ValueError, match=r"loss is not smooth.*huber_loss"):
            call(linear_model(), l1_loss, (X, Y))

    def huber(output: Tensor, target: Tensor) -> Tensor:
        return smooth_l1_loss(output, target, beta=0.5)

    assert lambda_max(linear_model(), huber, (X, Y)) > 0
    far = Y + torch.where(Y.median() < Y, 100.0, -100.0)
    assert lambda_max(linear_model(), huber, (X, far)) > 0


PRUNED = prune.l1_unstructured(linear_model(), "weight", 0.5)
PRUNED(X)


@pytest.mark.parametrize(
    ("model", "remedy"),
    [
        (PRUNED, r"prune\.remove\(module, 'weight'\)"),
        (spectral_norm(linear_model()), r"remove_spectral_norm\(module, 'weight'\)"),
        (nn.Sequential(parametrizations.weight_norm(linear_model())), r"remove_parametrizations\(module, 'weight'\)"),
    ],
)
def test_models_that_compute_their_weights_are_refused_with_the_remedy(model: nn.Module, remedy: str) -> None:
    for call in (lambda_max, regularization_path):
        with pytest.raises(ValueError, match=remedy):
            call(model, half_mse, (X, Y))


def test_a_pruned_model_is_taken_when_it_has_been_removed() -> None:
    model = prune.l1_unstructured(linear_model(), "weight", 0.5)
    assert lambda_max(prune.remove(model, "weight"), half_mse, (X, Y)) > 0


@pytest.mark.parametrize("key", ["l1", "group_l1"])
def test_features_that_are_all_constant_explain_nothing(key: str) -> None:
    """It once took every step that it was given, and warned of what rounding had left."""
    found = regularization_path(
        nn.Linear(1, 3).double(), mse_loss, (torch.full((10, 1), 5.0).double(), torch.randn(10, 3).double()), key=key
    )
    assert (found.lambdas == 0).all() and (found.nonzeros == 0).all() and found.converged.all()
