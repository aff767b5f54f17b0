"""Paths of linear models against scikit-learn's and their optimality conditions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from sklearn.linear_model import Lasso, MultiTaskLasso, enet_path
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import regkernels
from regkernels.selection import regularization_path
from tests.selection.common import LINEAR, LOGISTIC, MAXIMUM, X, Y, column, half_mse, linear_model, path
from tests.support import problems

LABELS = column(LOGISTIC.targets)


@pytest.mark.parametrize("l1_ratio", [1.0, 0.5, 0.1])
def test_is_scikit_learns_path(l1_ratio: float) -> None:
    ours = path(l1_ratio=l1_ratio, n_lambdas=30)
    centred, targets = X - X.mean(0), LINEAR.targets - LINEAR.targets.mean()
    _, weights, _ = enet_path(
        centred.numpy(), targets.numpy(), l1_ratio=l1_ratio, alphas=ours.lambdas.numpy(), tol=1e-15, max_iter=100_000
    )
    numpy.testing.assert_allclose(ours.weights, weights.T, atol=1e-8)
    assert numpy.array_equal(ours.weights != 0, weights.T != 0)
    intercepts = LINEAR.targets.mean() - ours.weights @ X.mean(0)
    torch.testing.assert_close(ours.states["bias"][:, 0], intercepts, rtol=0, atol=1e-8)
    assert ours.converged.all() and ours.violations.max() <= 1e-9 * ours.lambdas[0]
    assert ours.nonzeros[0] == 0 and ours.nonzeros[-1] > 8


def test_is_scikit_learns_logistic_regression() -> None:
    strengths = [0.05, 0.02, 0.005]
    model = linear_model(bias=False)
    ours = regularization_path(model, binary_cross_entropy_with_logits, (LOGISTIC.features, LABELS), strengths)
    for weights, l1 in zip(ours.weights, strengths, strict=True):
        expected = problems.solve(LOGISTIC, l1, 0.0)
        torch.testing.assert_close(weights, expected, rtol=0, atol=1e-8)
        assert torch.equal(weights != 0, expected != 0)


def test_each_point_satisfies_the_optimality_conditions_and_says_how_well() -> None:
    ours = path(n_lambdas=8, l1_ratio=0.7, weight_decay=0.2)
    for index, strength in enumerate(ours.lambdas.tolist()):
        weight, bias = ours.states["weight"][index, 0], ours.states["bias"][index]
        residual = X @ weight + bias - LINEAR.targets
        l1, decay = 0.7 * strength, 0.3 * strength + 0.2
        gradient = X.T @ residual / len(X) + decay * weight
        excess = torch.where(weight == 0, (gradient.abs() - l1).clamp(min=0), (gradient + l1 * weight.sign()).abs())
        violation = max(excess.max().item(), abs(residual.mean().item()))
        assert violation <= 1e-10 * ours.lambdas[0]
        # In units of the features, whose sizes, about 1 here, are estimated.
        assert ours.violations[index] == pytest.approx(violation, rel=0.5, abs=1e-13)
        assert ours.losses[index] == pytest.approx((residual**2).mean().item() / 2, rel=1e-12)
        penalty = l1 * weight.abs().sum() + decay / 2 * (weight**2).sum()
        assert ours.penalties[index] == pytest.approx(penalty.item(), rel=1e-12)
        assert ours.nonzeros[index] == (weight != 0).sum()


def test_the_first_weight_appears_at_lambda_max() -> None:
    ours = path([MAXIMUM * 1.0001, MAXIMUM * 0.999])
    assert ours.nonzeros.tolist() == [0, 1]


@pytest.mark.parametrize("loss", [half_mse, binary_cross_entropy_with_logits])
def test_more_weights_than_rows_and_a_strength_far_from_the_start(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(1)
    x = torch.randn(20, 60, dtype=torch.float64)
    y = x[:, :1] - x[:, 1:2] + torch.randn(20, 1, dtype=torch.float64)
    data = (x, y if loss is half_mse else (y > 0).double())
    far = regularization_path(nn.Linear(60, 1).double(), loss, data, [1e-3])
    many = regularization_path(nn.Linear(60, 1).double(), loss, data, torch.logspace(0, -3, 20), tol=1e-12)
    assert far.converged.all() and many.converged.all() and far.nonzeros[0] <= 20
    torch.testing.assert_close(far.weights[-1], many.weights[-1], rtol=0, atol=1e-6)


def test_warm_starts_take_fewer_steps_and_change_nothing_else() -> None:
    ours = path(n_lambdas=12)
    cold = [path([strength]) for strength in ours.lambdas.tolist()]
    torch.testing.assert_close(ours.weights, torch.cat([one.weights for one in cold]), rtol=0, atol=1e-8)
    assert ours.steps.sum() < sum(int(one.steps.sum()) for one in cold)


def test_both_directions_end_at_the_same_weights() -> None:
    down, up = path([0.3, 0.1, 0.05]), path([0.05, 0.1, 0.3], direction="increasing")
    assert down.lambdas.tolist() == [0.3, 0.1, 0.05] and up.lambdas.tolist() == [0.05, 0.1, 0.3]
    torch.testing.assert_close(down.weights, up.weights.flip(0), rtol=0, atol=1e-8)
    torch.testing.assert_close(down.weights, path(numpy.array([0.3, 0.1, 0.05])).weights, rtol=0, atol=1e-12)


def test_no_penalty_is_least_squares() -> None:
    expected = torch.linalg.lstsq(torch.cat([X, torch.ones(len(X), 1)], 1), Y).solution[:-1, 0]
    for direction in ("decreasing", "increasing"):
        torch.testing.assert_close(path([0.0], direction=direction).weights[0], expected, rtol=0, atol=1e-8)


def test_float32_and_batches_solve_the_same_problem() -> None:
    expected = path(n_lambdas=5)
    single = regularization_path(linear_model().float(), half_mse, (X.float(), Y.float()), expected.lambdas)
    batches = regularization_path(
        linear_model(), half_mse, list(zip(X.split(17), Y.split(17), strict=True)), expected.lambdas
    )
    assert single.converged.all() and single.weights.dtype == torch.float32
    torch.testing.assert_close(single.weights.double(), expected.weights, rtol=0, atol=1e-4)
    torch.testing.assert_close(batches.weights, expected.weights, rtol=0, atol=1e-8)


def test_the_model_is_copied_and_the_random_state_is_as_before() -> None:
    model = linear_model()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=30, shuffle=True)
    ours = regularization_path(model, half_mse, loader, [0.1])
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(ours.load(model, 0).weight.detach(), ours.states["weight"][0])
    made = regularization_path(linear_model, half_mse, (X, Y), [0.1])
    torch.testing.assert_close(made.weights, ours.weights, rtol=0, atol=1e-8)


def test_scores_of_validation_data_and_the_best_of_them() -> None:
    data = {"validation": (X[:20] * 1.1, Y[:20])}
    ours = path([0.3, 0.1, 0.03], **data, score=lambda output, target: -(output - target).abs().mean())
    expected = [
        -(X[:20] * 1.1 @ weight + bias - LINEAR.targets[:20]).abs().mean().item()
        for weight, bias in zip(ours.weights, ours.states["bias"], strict=True)
    ]
    assert ours.scores is not None
    assert ours.scores.tolist() == pytest.approx(expected, rel=1e-12)
    assert ours.best == int(numpy.argmax(expected))
    losses = path([0.3, 0.1, 0.03], validation=(X, Y))
    assert losses.scores is not None
    torch.testing.assert_close(losses.scores, -losses.losses)
    tied = path([3 * MAXIMUM, 2 * MAXIMUM, 0.1], validation=(X, Y), score=lambda output, target: 0.0)
    assert tied.best == 0 and tied.lambdas[0] == 3 * MAXIMUM
    with pytest.raises(ValueError, match="no scores: pass validation="):
        _ = path([0.1]).best


# --- groups, and optimizers of the user's own ---


class GroupSGD(torch.optim.Optimizer):
    """Proximal gradient steps for the group lasso over columns, written from its definition."""

    def __init__(self, groups: Any, lr: float = 1.0) -> None:
        super().__init__(groups, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for param in group["params"]:
                param -= group["lr"] * param.grad
                if group["group_l1"] > 0:
                    norms = param.norm(dim=0, keepdim=True)
                    threshold = group["lr"] * group["group_l1"] * math.sqrt(len(param))
                    param *= (1 - threshold / norms.clamp(min=1e-300)).clamp(min=0)


@pytest.mark.parametrize("own_optimizer", [True, False])
def test_a_group_lasso_over_columns_is_scikit_learns(own_optimizer: bool) -> None:
    """Its MultiTaskLasso takes half the sum over the tasks, not their mean, and has no root of the size in its penalty."""
    tasks = torch.cat([Y, X[:, 1:2] - Y, X[:, :3].sum(1, keepdim=True)], 1) + 0.3 * X.roll(1, 0)[:, :3]
    optimizer: Any = (lambda groups: GroupSGD(groups, 0.5)) if own_optimizer else None
    ours = regularization_path(
        linear_model(3),
        half_mse,
        (X, tasks),
        key="group_l1",
        group_dim=1,
        n_lambdas=5,
        lambda_min_ratio=0.03,
        optimizer=optimizer,
        max_steps=3000,
        tol=1e-9,
    )
    assert ours.converged.all() and ours.zero_groups is not None
    assert ours.zero_groups[0] == 12 and 0 < ours.zero_groups[-1] < 12
    for index, strength in enumerate(ours.lambdas.tolist()):
        theirs = MultiTaskLasso(alpha=strength * math.sqrt(3) * 3, tol=1e-15, max_iter=100_000)
        expected = theirs.fit(X.numpy(), tasks.numpy()).coef_
        weight = ours.states["weight"][index]
        numpy.testing.assert_allclose(weight, expected, rtol=0, atol=1e-7)
        assert ours.zero_groups[index] == (expected == 0).all(0).sum()
        assert ours.penalties[index] == pytest.approx(strength * math.sqrt(3) * weight.norm(dim=0).sum().item())


@pytest.mark.parametrize(
    ("options", "shrunk"),
    [  # of least squares solutions, one weight at a time: between 0, where it is biased, and where it is not
        ({"key": "mcp", "mcp_gamma": 2.0}, lambda z, t: z if z >= 2 * t else max(z - t, 0) * 2),
        (
            {"key": "scad"},
            lambda z, t: z if z >= 3.7 * t else max(z - t, 0) if z <= 2 * t else (2.7 * z - 3.7 * t) / 1.7,
        ),
    ],
    ids=["mcp", "scad"],
)
def test_other_penalties_with_orthogonal_columns(
    options: dict[str, Any], shrunk: Callable[[float, float], float]
) -> None:
    """Then the problem falls apart into one per weight. Sources: Zhang (2010), eq. 2.4; Fan and Li (2001), eq. 2.8."""
    features = math.sqrt(len(X)) * torch.linalg.qr(X)[0]
    least_squares = features.T @ LINEAR.targets / len(X)
    targets = column(LINEAR.targets)
    features = features * least_squares.sign()  # solutions are positive, so that the formulas need no signs
    ours = regularization_path(linear_model(bias=False), half_mse, (features, targets), n_lambdas=6, **options)
    assert ours.converged.all() and 0 < ours.nonzeros[3] < 12
    for weights, strength in zip(ours.weights, ours.lambdas.tolist(), strict=True):
        expected = [shrunk(abs(z), strength) for z in least_squares.tolist()]
        torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-8)


def test_weights_that_must_not_be_negative() -> None:
    ours = path(n_lambdas=10, positive=True)
    for index, strength in enumerate(ours.lambdas.tolist()):
        lasso = Lasso(alpha=strength, positive=True, tol=1e-15, max_iter=100_000).fit(X.numpy(), LINEAR.targets.numpy())
        numpy.testing.assert_allclose(ours.weights[index], lasso.coef_, atol=1e-8)
    assert (path(ours.lambdas).weights < -1e-3).any() and ours.nonzeros[-1] > 1


@pytest.mark.parametrize("by_name", [False, True])
def test_an_adaptive_lasso_is_a_lasso_of_scaled_columns(by_name: bool) -> None:
    """Zou (2006), section 3.5. A weight of 0 is no penalty at all."""
    l1_weights = torch.linspace(0.2, 3, 12, dtype=torch.float64)[None]
    strengths = [0.3, 0.1, 0.03]
    ours = path(strengths, l1_weights={"weight": l1_weights} if by_name else [l1_weights])
    scaled = regularization_path(linear_model(), half_mse, (X / l1_weights, Y), strengths)
    torch.testing.assert_close(ours.weights * l1_weights, scaled.weights, rtol=0, atol=1e-8)
    torch.testing.assert_close(ours.penalties, scaled.penalties, rtol=1e-7, atol=0)
    l1_weights[0, 2] = 0
    free = path([1e3], l1_weights=[l1_weights], tol=1e-14)
    slope = torch.linalg.lstsq(torch.stack([X[:, 2], torch.ones(len(X))], 1), Y).solution[0]
    assert free.nonzeros.tolist() == [1] and free.weights[0, 2] == pytest.approx(slope.item(), rel=1e-9)


def test_adam_finds_the_same_path() -> None:
    def adam(groups: Any) -> torch.optim.Optimizer:
        return regkernels.optim.Adam(groups, lr=0.03)

    ours = path(n_lambdas=4, lambda_min_ratio=0.05, optimizer=adam, max_steps=5000, tol=1e-9)
    torch.testing.assert_close(ours.weights, path(ours.lambdas).weights, rtol=0, atol=1e-7)
    assert ours.steps.max() < 5000
