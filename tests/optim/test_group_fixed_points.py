"""What training with group penalties converges to: optimality conditions of the group lasso, by closed form."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from skglm import GeneralizedLinearEstimator
from skglm.datafits import QuadraticGroup
from skglm.penalties import WeightedGroupL2
from skglm.solvers import GroupBCD
from skglm.utils.data import grp_converter
from torch import Tensor

from tests.optim.test_fixed_points import CLOSE, RULES
from tests.support import problems

LINEAR = problems.linear()
SIZE = 3
GROUPS = torch.arange(12) // SIZE
ROOT = SIZE**0.5

OBJECTIVES: dict[str, dict[str, Any]] = {
    "group lasso": {"group_l1": 0.35},
    "unweighted": {"group_l1": 0.6, "group_weight": "ones"},
    "sparse group lasso": {"group_l1": 0.2, "l1": 0.1},
    "with decay": {"group_l1": 0.3, "l1": 0.05, "weight_decay": 0.4, "weight_decay_mode": "prox"},
}


def violation(w: Tensor, group_l1: float, l1: float = 0.0, weight_decay: float = 0.0, **options: Any) -> float:
    """The distance of 0 from the objective's subdifferential.

    Source: Simon et al., A sparse-group lasso (2013), section 2: in a group of zeros the gradient, soft-thresholded by l1, has at
    most the norm ``group_l1 * c``.
    """
    gradient = LINEAR.gradient(w) + weight_decay * w
    strength, excess = group_l1 * (1.0 if options.get("group_weight") == "ones" else ROOT), []
    for group in range(4):
        x, g = w[group == GROUPS], gradient[group == GROUPS]
        if not x.any():
            excess.append((g.abs() - l1).clamp(min=0).norm() - strength)
            continue
        g = g + strength * x / x.norm()
        excess.append(torch.where(x == 0, (g.abs() - l1).clamp(min=0), g + l1 * x.sign()).norm())
    return max(float(value) for value in excess)


def minimise(rule: str, **options: Any) -> Tensor:
    own = {"group_size": SIZE, **options}
    return problems.minimise(LINEAR, lambda params: RULES[rule](params, **own), steps=RULES[rule].steps)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_converges_to_the_minimum(rule: str, name: str) -> None:
    options = OBJECTIVES[name]
    w = minimise(rule, **options)
    assert violation(w, **options) < CLOSE
    zero = [not w[group == GROUPS].any() for group in range(4)]
    assert 0 < sum(zero) < 4
    if "l1" in options:
        assert sum(int((w[group == GROUPS] == 0).sum()) for group in range(4) if not zero[group]) > 0


def test_the_group_lasso_is_that_of_skglm() -> None:
    indices, pointers = grp_converter(SIZE, 12)
    theirs = GeneralizedLinearEstimator(
        QuadraticGroup(pointers, indices),
        WeightedGroupL2(0.35, numpy.full(4, ROOT), pointers, indices),
        GroupBCD(fit_intercept=False, tol=1e-12, max_iter=2000),
    ).fit(numpy.asfortranarray(LINEAR.features.numpy()), LINEAR.targets.numpy())
    expected = torch.from_numpy(theirs.coef_)
    assert (expected == 0).any() and (expected != 0).any()
    for rule in ("momentum", "adam"):
        w = minimise(rule, group_l1=0.35)
        torch.testing.assert_close(w, expected, rtol=0, atol=1e-8)
        assert torch.equal(w == 0, expected == 0)


def test_coupled_decay_has_the_same_minimum() -> None:
    options = {**OBJECTIVES["with decay"], "weight_decay_mode": "coupled"}
    assert violation(minimise("adam", **options), **options) < CLOSE


@pytest.mark.parametrize("rule", ["sgd", "adam", "rmsprop"])
def test_bounds_of_norms_are_kept_and_what_is_within_is_optimal(rule: str) -> None:
    """Projected gradient: in a group at the bound the gradient points against the weights, elsewhere it is 0."""
    w = minimise(rule, max_norm=1.2, **RULES[rule].ridge_options)  # some gradients vanish
    norms = torch.stack([w[group == GROUPS].norm() for group in range(4)])
    bound = (norms - 1.2).abs() < 1e-12
    assert (norms <= 1.2 * (1 + 1e-15)).all() and 0 < bound.sum() < 4
    for group in range(4):
        x, g = w[group == GROUPS], LINEAR.gradient(w)[group == GROUPS]
        if bound[group]:
            along = (g @ x) / (x @ x)
            assert along < 0 and (g - along * x).norm() < CLOSE
        else:
            assert g.norm() < CLOSE
