"""A lasso path on data in raw units: what does it cost here, beside scikit-learn's coordinate descent that is made for it?

Both solve the same 20 strengths to the same tolerance; here any loss and any linear model could stand in their place.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import building
from benchmarks.building import OURS
from benchmarks.case import Case, Contender, Scope
from regkernels.selection import lambda_grid, lambda_max, regularization_path

SKLEARN = "scikit-learn"
STRENGTHS = 20


def cases(scope: Scope) -> Iterator[Case]:
    if torch.device(scope.device).type != "cpu":
        return
    for name in ("wine", "diabetes"):
        makers = {peer: partial(make, peer, name) for peer in building.taking_part([SKLEARN, OURS], scope)}
        yield Case("paths", f"{STRENGTHS} strengths, raw {name}", makers, clock="wall", x=STRENGTHS)


def half_mse(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.mse_loss(output, target) / 2


def make(peer: str, name: str) -> Contender:
    from sklearn import datasets
    from sklearn.linear_model import lasso_path

    load: Any = datasets.load_wine if name == "wine" else partial(datasets.load_diabetes, scaled=False)
    features, targets = load(return_X_y=True)
    data = torch.tensor(features).double(), torch.tensor(targets).double()[:, None]
    model = nn.Linear(features.shape[1], 1).double()
    strengths = lambda_grid(lambda_max(model, half_mse, data), STRENGTHS)
    if peer == OURS:
        return Contender(lambda: regularization_path(model, half_mse, data, strengths, progress=False), keep=data)
    centred, alphas = (features - features.mean(0), targets - targets.mean()), strengths.numpy()
    return Contender(lambda: lasso_path(*centred, alphas=alphas, tol=1e-10, max_iter=1_000_000), keep=data)


def test_paths(benchmark: Any, timed: dict[str, Any]) -> None:
    benchmark.pedantic(**timed)
