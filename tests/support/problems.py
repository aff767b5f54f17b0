"""Small convex problems and their solutions by scikit-learn: what an optimizer has to converge to.

Everywhere ``f(w)`` is a mean over the rows and the objective is

    f(w) + l1 * sum |w| + weight_decay / 2 * sum w**2

with f the mean of ``(x w - y)**2 / 2`` (linear) or of ``log(1 + exp(x w)) - y x w`` (logistic).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy
import torch
from sklearn.linear_model import ElasticNet, Lasso, LogisticRegression, Ridge
from torch import Tensor


class Problem(NamedTuple):
    """The smooth part f of an objective. ``features``: (rows, columns), float64; ``targets``: (rows,)."""

    features: Tensor
    targets: Tensor
    logistic: bool

    def loss(self, prediction: Tensor) -> Tensor:
        """f, as autograd sees it, of ``prediction = features @ w``."""
        if self.logistic:
            return torch.nn.functional.binary_cross_entropy_with_logits(prediction, self.targets)
        return ((prediction - self.targets) ** 2).mean() / 2

    def gradient(self, w: Tensor) -> Tensor:
        """The gradient of f, in closed form."""
        prediction = self.features @ w
        if self.logistic:
            prediction = prediction.sigmoid()
        return self.features.T @ (prediction - self.targets) / len(self.targets)

    @property
    def lambda_max(self) -> float:
        """The smallest ``l1`` that has the solution 0."""
        return self.gradient(torch.zeros_like(self.features[0])).abs().max().item()


def _features(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(12)
    features = torch.randn(rows, columns, dtype=torch.float64, generator=generator)
    features = features + 0.3 * features.roll(1, 1)  # correlated columns: the solution is not a soft-threshold
    return features, torch.randn(rows, dtype=torch.float64, generator=generator)


def linear() -> Problem:
    """60 x 12, of which 4 columns matter."""
    features, noise = _features(60, 12)
    truth = torch.zeros(12, dtype=torch.float64)
    truth[[0, 3, 5, 8]] = torch.tensor([1.0, -2.0, 1.5, -0.5], dtype=torch.float64)
    return Problem(features, features @ truth + 0.2 * noise, logistic=False)


def logistic() -> Problem:
    """The same matrix, with the signs of noisy targets as the two classes."""
    problem = linear()
    _, noise = _features(60, 12)
    return Problem(problem.features, (problem.targets + 1.5 * noise > 0).double(), logistic=True)


def solve(problem: Problem, l1: float, weight_decay: float) -> Tensor:
    """scikit-learn's solution. This is the one place where its conventions are converted into ours.

    ElasticNet and Lasso take the mean of squares / 2 with ``alpha * l1_ratio = l1`` and ``alpha * (1 - l1_ratio) =
    weight_decay``; Ridge the sum of squares without 1/2, hence ``alpha = rows * weight_decay``; LogisticRegression
    weighs the sum over rows with C and the penalty with 1, hence ``C = 1 / (rows * l1)``.
    """
    x, y = problem.features.numpy(), problem.targets.numpy()
    rows = len(y)
    if problem.logistic:
        assert l1 > 0 and weight_decay == 0
        model = LogisticRegression(
            l1_ratio=1.0, C=1 / (rows * l1), solver="saga", fit_intercept=False, tol=1e-14, max_iter=100_000
        )
    elif l1 == 0:
        model = Ridge(alpha=rows * weight_decay, fit_intercept=False, solver="cholesky")
    elif weight_decay == 0:
        model = Lasso(alpha=l1, fit_intercept=False, tol=1e-15, max_iter=100_000)
    else:
        alpha = l1 + weight_decay
        model = ElasticNet(alpha=alpha, l1_ratio=l1 / alpha, fit_intercept=False, tol=1e-15, max_iter=100_000)
    return torch.from_numpy(numpy.ravel(model.fit(x, y).coef_).copy())


def optimality_violation(problem: Problem, w: Tensor, l1: float, weight_decay: float) -> float:
    """How far w is from the optimality conditions: 0 must be a subgradient of the objective (largest excess)."""
    gradient = problem.gradient(w) + weight_decay * w
    excess = torch.where(w == 0, (gradient.abs() - l1).clamp(min=0), (gradient + l1 * w.sign()).abs())
    return excess.max().item()


def minimise(
    problem: Problem,
    make_optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
    start: float = 1.0,
    maximise: bool = False,
    steps: int = 40_000,
) -> Tensor:
    """Full-batch steps until 250 of them move no weight by more than 1e-13. ``maximise``: hands in the gradients of -f."""
    w = torch.nn.Parameter(torch.full_like(problem.features[0], start))
    optimizer = make_optimizer([w])
    before = w.detach().clone()
    for step in range(1, steps + 1):
        gradient = problem.gradient(w.detach())
        w.grad = -gradient if maximise else gradient
        optimizer.step()
        if step % 250 == 0:
            if (w.detach() - before).abs().max() <= 1e-13:
                break
            before.copy_(w.detach())
    return w.detach().clone()
