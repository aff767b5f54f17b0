"""With each penalty, what every optimizer converges to is a stationary point, and where that is unique, another solver's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from skglm import GeneralizedLinearEstimator
from skglm.datafits import Quadratic
from skglm.penalties import SCAD, MCPenalty
from skglm.solvers import AndersonCD
from sklearn.linear_model import Lasso
from torch import Tensor, nn

from regkernels import optim
from regkernels.reference.family import FAMILY
from tests.optim.test_fixed_points import LINEAR, LOGISTIC, RULES
from tests.support import penalised, problems

CLOSE = 1e-8
WEIGHTS = torch.linspace(0.2, 1.7, 12, dtype=torch.float64)


# A penalty that is concave with curvature 1 / gamma wants steps that are not too large: lr / eps below gamma, as the gradients
# vanish where it is constant, and with momentum ``lr * c < gamma * (1 - momentum)``: what its proximal step expands, the
# buffer contracts only slowly.
LR = {
    **dict.fromkeys(("adam", "amsgrad", "adamw", "radam", "rmsprop", "rmsprop_centered"), 0.05),
    "momentum": 0.01,
    "dampening": 0.02,
    "rmsprop_momentum": 2e-3,
    "rmsprop_both": 0.2,
}


class Objective(NamedTuple):
    """f + penalty + decay / 2 * w^2, within bounds."""

    penalty: str
    strength: float
    shape: float = 1.0
    decay: float = 0.0
    low: float = -math.inf
    high: float = math.inf
    logistic: bool = False
    weights: Tensor | None = None  # of l1

    @property
    def problem(self) -> problems.Problem:
        return LOGISTIC if self.logistic else LINEAR

    @property
    def options(self) -> dict[str, Any]:
        """Keys of a param group."""
        found = penalised.options(self.penalty, self.strength, self.shape)
        found |= {"weight_decay": self.decay, "weight_decay_mode": "prox"}
        if self.low == 0:
            found["positive"] = True
        elif self.low > -math.inf:
            found["box"] = (self.low, self.high)
        return found if self.weights is None else {**found, "l1_weights": [self.weights]}

    def distance(self, w: Tensor) -> float:
        """From the optimality conditions."""
        strength = self.strength if self.weights is None else self.strength * self.weights
        gradient = self.problem.gradient(w) + self.decay * w
        return penalised.subdiff_distance(self.penalty, w, gradient, strength, self.shape, self.low, self.high)


OBJECTIVES = {
    "l0": Objective("l0", 0.02),
    "l0, logistic": Objective("l0", 0.01, logistic=True, decay=0.1),
    "l_half": Objective("l_half", 0.05),
    "mcp": Objective("mcp", 0.1, 4.0),
    "mcp, decay": Objective("mcp", 0.2, 2.5, decay=0.5),
    "scad": Objective("scad", 0.1, 5.0),
    "scad, decay": Objective("scad", 0.2, 3.5, decay=0.5),
    "log_sum": Objective("log_sum", 0.1, 1.0),
    "log_sum, steep": Objective("log_sum", 0.02, 0.1),
    "huber": Objective("huber", 0.5, 0.7),
    "huber, box": Objective("huber", 0.5, 0.7, low=-1.0, high=0.8),
    "huber, logistic": Objective("huber", 0.1, 0.3, logistic=True, decay=0.1),
    "positive lasso": Objective("l1", 0.1, low=0.0),
    "positive mcp": Objective("mcp", 0.1, 3.0, low=0.0),
    "weighted": Objective("l1", 0.1, weights=WEIGHTS),
    "weighted, decay, logistic": Objective("l1", 0.02, weights=WEIGHTS, decay=0.1, logistic=True),
}
OBJECTIVES |= {
    key: Objective(key, 0.1, penalised.PENALTIES[key].shape)
    for key in FAMILY.keys() - {of.penalty for of in OBJECTIVES.values()}
}


def minimise(make: Callable[..., torch.optim.Optimizer], start: float, steps: int) -> dict[str, Tensor]:
    """All of them together, a param group each, until 250 steps move nothing by more than 1e-11."""
    ws = [nn.Parameter(torch.full((12,), start, dtype=torch.float64)) for _ in OBJECTIVES]
    optimizer = make([{"params": [w], **of.options} for w, of in zip(ws, OBJECTIVES.values(), strict=True)])
    members = [[i for i, of in enumerate(OBJECTIVES.values()) if of.logistic == logistic] for logistic in (False, True)]
    before = torch.zeros(len(ws), 12)
    for step in range(steps):
        now = torch.stack([w.detach() for w in ws])
        if step % 250 == 0:
            if (now - before).abs().max() <= 1e-11:
                break
            before = now
        for problem, rows in zip((LINEAR, LOGISTIC), members, strict=True):
            prediction = problem.features @ now[rows].T
            residual = (prediction.sigmoid() if problem.logistic else prediction) - problem.targets[:, None]
            gradients = (problem.features.T @ residual / len(residual)).T.contiguous()
            for row, gradient in zip(rows, gradients, strict=True):
                ws[row].grad = gradient
        optimizer.step()
    return {name: w.detach() for name, w in zip(OBJECTIVES, ws, strict=True)}


@pytest.fixture(scope="module")
def unique() -> dict[str, Tensor]:
    """By coordinate descent, where f is more convex than the penalty is concave."""
    curvature = torch.linalg.eigvalsh(LINEAR.features.T @ LINEAR.features / 60).min()
    assert curvature > 1 / 4  # mcp: 1 / gamma, scad: 1 / (a - 1)
    x, y = numpy.asfortranarray(LINEAR.features.numpy()), LINEAR.targets.numpy()

    def solve(penalty: Any) -> Tensor:
        solver = AndersonCD(tol=1e-14, fit_intercept=False, max_iter=500, max_epochs=100_000)
        return torch.from_numpy(GeneralizedLinearEstimator(Quadratic(), penalty, solver).fit(x, y).coef_)

    weighted = Lasso(alpha=0.1, fit_intercept=False, tol=1e-15, max_iter=100_000).fit(x / WEIGHTS.numpy(), y)
    positive = Lasso(alpha=0.1, fit_intercept=False, positive=True, tol=1e-15, max_iter=100_000).fit(x, y)
    return {
        "mcp": solve(MCPenalty(0.1, 4.0)),
        "scad": solve(SCAD(0.1, 5.0)),
        "weighted": torch.from_numpy(weighted.coef_) / WEIGHTS,
        "positive lasso": torch.from_numpy(positive.coef_),
    }


@pytest.mark.parametrize("name", RULES)
def test_every_penalty_in_every_metric(name: str, unique: dict[str, Tensor]) -> None:
    rule = RULES[name]
    own = {**rule.ridge_options, **({"lr": LR[name]} if name in LR else {})}
    found = minimise(lambda groups: rule(groups, **own), start=1.0, steps=8000)
    for key, w in found.items():
        of = OBJECTIVES[key]
        assert ((w >= of.low) & (w <= of.high)).all(), key
        assert of.distance(w) < CLOSE, key
        zeros = int((w == 0).sum())
        assert (zeros == 0) if of.penalty == "huber" else (1 < zeros < 12), key
    for key, solution in unique.items():
        assert (found[key] - solution).abs().max() < CLOSE and torch.equal(found[key] != 0, solution != 0), key


def test_the_distance_is_one() -> None:
    """That of a point beside a solution is not 0: what would make the test above an empty one."""
    found = minimise(lambda groups: optim.SGD(groups, lr=0.1), start=1.0, steps=3000)
    for key, w in found.items():
        interior = (w != 0) & (w > OBJECTIVES[key].low) & (w < OBJECTIVES[key].high)
        moved = torch.where(interior, w + 1e-5, w)
        assert OBJECTIVES[key].distance(moved) > CLOSE > OBJECTIVES[key].distance(w), key
