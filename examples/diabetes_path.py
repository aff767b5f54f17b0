"""Computes lasso paths of scikit-learn's diabetes data: by regkernels, by scikit-learn, and the strength that cross-validation chooses."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import numpy
import path_picture
import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LassoCV, enet_path
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from regkernels.selection import RegularizationPath, regularization_path


class Findings(NamedTuple):
    """Holds ``theirs``: scikit-learn's coefficients, (strengths, 10). ``errors``: the mean squared error of each strength on the rows left
    out, by us and by scikit-learn, whose choice is ``alpha``."""

    names: list[str]
    path: RegularizationPath
    theirs: numpy.ndarray
    errors: Tensor
    their_errors: numpy.ndarray
    alpha: float

    @property
    def chosen(self) -> float:
        """Returns the strength with the smallest error."""
        return self.path.lambdas[self.errors.argmin()].item()


def half_mse(output: Tensor, target: Tensor) -> Tensor:
    """Computes the loss; that in scikit-learn's Lasso has the factor 1/2, too."""
    return nn.functional.mse_loss(output, target) / 2


def minus_mse(output: Tensor, target: Tensor) -> Tensor:
    """Computes a score: larger is better."""
    return -nn.functional.mse_loss(output, target)


def find(n_lambdas: int, folds: int) -> Findings:
    """Does the whole computation."""
    data = load_diabetes(scaled=False)
    features, target = StandardScaler().fit_transform(data.data), data.target
    x, y = torch.from_numpy(features), torch.from_numpy(target)[:, None]
    model = nn.Linear(x.shape[1], 1, dtype=torch.float64)

    path = regularization_path(model, half_mse, (x, y), n_lambdas=n_lambdas)
    _, theirs, _ = enet_path(
        features, target - target.mean(), l1_ratio=1.0, alphas=path.lambdas.numpy(), tol=1e-14, max_iter=100_000
    )

    scores = []
    for train, test in KFold(folds).split(features):
        fold = regularization_path(
            model, half_mse, (x[train], y[train]), path.lambdas, validation=(x[test], y[test]), score=minus_mse
        )
        scores.append(fold.scores)
    errors = -torch.stack(scores).mean(0)
    lasso = LassoCV(alphas=n_lambdas, cv=KFold(folds), tol=1e-10, max_iter=100_000).fit(features, target)
    return Findings(data.feature_names, path, theirs.T, errors, lasso.mse_path_.mean(1), lasso.alpha_)


def report(findings: Findings) -> None:
    """Says in words what was found."""
    path = findings.path
    difference = numpy.abs(path.weights.numpy() - findings.theirs).max()
    zeros = numpy.array_equal(path.weights.numpy() != 0, findings.theirs != 0)
    chosen = path.weights[findings.errors.argmin()].tolist()
    print(f"{len(path)} strengths, {int(path.steps.sum())} steps, all converged: {bool(path.converged.all())}")
    print(f"largest violation of the optimality conditions: {path.violations.max():.1e}")
    print(f"largest difference to scikit-learn's coefficients: {difference:.1e}; the same zeros: {zeros}")
    print(
        f"cross-validation chooses lambda = {findings.chosen:.6f}, scikit-learn's LassoCV alpha = {findings.alpha:.6f}"
    )
    print(
        "weights there: "
        + ", ".join(f"{name} {weight:.1f}" for name, weight in zip(findings.names, chosen, strict=True) if weight)
    )


def draw(findings: Findings, picture: str) -> None:
    """Draws coefficients on the left, errors on the right; lines are ours, points scikit-learn's."""
    figure, (weights, errors) = path_picture.panels()
    path_picture.coefficients(weights, findings.path, findings.names, findings.path.lambdas.tolist(), findings.theirs)
    lambdas = findings.path.lambdas.tolist()
    errors.plot(lambdas, findings.errors.tolist(), color="#0072B2", label="regkernels")
    errors.plot(
        lambdas[::4], findings.their_errors[::4], "o", color="#0072B2", markersize=4, label="scikit-learn, LassoCV"
    )
    errors.set(title="Error on rows left out", ylabel="mean squared error")
    for axes in (weights, errors):
        axes.axvline(findings.chosen, color="#555555", linestyle=":", linewidth=1.2)
    errors.annotate(
        f"chosen: {findings.chosen:.2f}",
        (findings.chosen, 1),
        (5, -12),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        color="#555555",
    )
    errors.legend(frameon=False, loc="upper left", bbox_to_anchor=(0.12, 0.9))
    figure.savefig(picture)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lambdas", type=int, default=100, help="strengths on the path (default: %(default)s)")
    parser.add_argument("--folds", type=int, default=5, help="of the cross-validation (default: %(default)s)")
    parser.add_argument("--picture", metavar="FILE", help="a PNG file to write (needs matplotlib)")
    args = parser.parse_args(arguments)
    findings = find(args.lambdas, args.folds)
    report(findings)
    if args.picture:
        draw(findings, args.picture)


if __name__ == "__main__":
    main()
