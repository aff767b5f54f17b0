"""A lasso path over raw, unscaled data: what does `regularization_path` cost, and scikit-learn's coordinate descent?

scikit-learn is the baseline, with its own tolerance, which is the looser one, and data that are centred beforehand. It solves linear models alone;
what takes the time here is that any module and any loss may stand in their place.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy
import torch
from sklearn.datasets import load_diabetes, load_wine
from sklearn.linear_model import lasso_path
from torch import Tensor, nn

from benchmarks import building
from benchmarks.building import OURS
from benchmarks.case import Case, Contender, Scope
from regkernels.selection import lambda_grid, lambda_max, regularization_path

THEIRS = "scikit-learn"
Data = tuple[numpy.ndarray, numpy.ndarray]


def wine() -> Data:
    return load_wine(return_X_y=True)  # type: ignore[no-any-return]


def diabetes() -> Data:
    data = load_diabetes(scaled=False)
    return data.data, data.target


def wide() -> Data:
    """Many more features than rows, five of them of use."""
    draws = numpy.random.default_rng(0)
    x = draws.normal(size=(100, 1000))
    return x, x[:, :5].sum(1) + draws.normal(size=100)


CASES: list[tuple[str, Callable[[], Data], int]] = [
    ("wine, 178 x 13", wine, 20),
    ("diabetes, 442 x 10", diabetes, 20),
    ("diabetes, 442 x 10", diabetes, 100),
    ("random, 100 x 1000", wide, 20),
]


def cases(scope: Scope) -> Iterator[Case]:
    if scope.device != "cpu":  # no question for a device: a step takes microseconds
        return
    for name, load, count in CASES[:2] if scope.quick else CASES:
        makers = {peer: partial(make, peer, load, count) for peer in building.taking_part([THEIRS, OURS], scope)}
        yield Case("paths", f"{name}, {count} strengths", makers, clock="wall")


def half_mse(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.mse_loss(output, target) / 2


def make(peer: str, load: Callable[[], Data], count: int) -> Contender:
    x, y = load()
    data = torch.from_numpy(x), torch.from_numpy(y).double()[:, None]
    model = nn.Linear(x.shape[1], 1, dtype=torch.float64)
    strengths = lambda_grid(lambda_max(model, half_mse, data), count)
    if peer == OURS:
        return Contender(lambda: regularization_path(model, half_mse, data, strengths, progress=False))
    centred, targets = numpy.asfortranarray(x - x.mean(0)), y - y.mean()

    def run() -> Any:
        with warnings.catch_warnings():  # of raw data it says that it has not converged
            warnings.simplefilter("ignore")
            return lasso_path(centred, targets, alphas=strengths.numpy())

    return Contender(run)


def test_paths(benchmark: Any, timed: dict[str, Any]) -> None:
    benchmark.pedantic(**timed)
