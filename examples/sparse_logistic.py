"""Fits a sparse logistic regression to scikit-learn's breast cancer data: by regkernels, by scikit-learn, and how accurate it is."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import numpy
import path_picture
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from regkernels.selection import RegularizationPath, regularization_path


class Findings(NamedTuple):
    """Holds ``compared``: indices of the strengths at which scikit-learn was asked; ``theirs``: its coefficients there. ``accuracy``: of each
    strength on the rows left out, a mean over the folds."""

    names: list[str]
    path: RegularizationPath
    compared: list[int]
    theirs: numpy.ndarray
    accuracy: Tensor


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """Returns the share of logits with the right sign."""
    return ((output > 0) == (target > 0.5)).double().mean()


def find(n_lambdas: int, folds: int, comparisons: int) -> Findings:
    """Does the whole computation."""
    data = load_breast_cancer()
    features = StandardScaler().fit_transform(data.data)
    x, y = torch.from_numpy(features), torch.from_numpy(data.target).double()[:, None]
    model = nn.Linear(x.shape[1], 1, dtype=torch.float64)

    loss = binary_cross_entropy_with_logits
    path = regularization_path(model, loss, (x, y), n_lambdas=n_lambdas, lambda_min_ratio=1e-2)
    compared = numpy.linspace(1, n_lambdas - 1, comparisons).round().astype(int).tolist()
    theirs = [scikit_learns(features, data.target, path.lambdas[index].item()) for index in compared]

    scores = []
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=0).split(features, data.target):
        fold = regularization_path(
            model, loss, (x[train], y[train]), path.lambdas, validation=(x[test], y[test]), score=accuracy
        )
        scores.append(fold.scores)
    return Findings(list(data.feature_names), path, compared, numpy.stack(theirs), torch.stack(scores).mean(0))


def scikit_learns(features: numpy.ndarray, labels: numpy.ndarray, l1: float) -> numpy.ndarray:
    """Fits scikit-learn's, whose C weighs the sum over the rows, so that ``C = 1 / (rows * l1)``. Shape (columns,)."""
    model = LogisticRegression(
        l1_ratio=1.0, C=1 / (len(labels) * l1), solver="saga", tol=1e-9, max_iter=50_000, random_state=0
    )
    return model.fit(features, labels).coef_[0]


def report(findings: Findings) -> None:
    """Says in words what was found."""
    path = findings.path
    ours = path.weights[findings.compared].numpy()
    print(f"{len(path)} strengths, {int(path.steps.sum())} steps, all converged: {bool(path.converged.all())}")
    print(f"largest violation of the optimality conditions: {path.violations.max():.1e}")
    print(
        f"largest difference to scikit-learn's coefficients at {len(ours)} strengths: "
        f"{numpy.abs(ours - findings.theirs).max():.1e}; the same zeros: {numpy.array_equal(ours != 0, findings.theirs != 0)}"
    )
    print("\n  lambda  nonzeros  accuracy, %")
    for index in range(0, len(path), max(1, len(path) // 8)):
        print(f"{path.lambdas[index]:8.4f}  {path.nonzeros[index]:8d}  {100 * findings.accuracy[index]:11.1f}")


def draw(findings: Findings, picture: str) -> None:
    """Draws coefficients on the left, accuracy and nonzeros on the right; lines are ours, points scikit-learn's."""
    figure, (weights, right) = path_picture.panels()
    path = findings.path
    lambdas = path.lambdas.tolist()
    their_lambdas = [lambdas[index] for index in findings.compared]
    path_picture.coefficients(weights, path, findings.names, their_lambdas, findings.theirs)
    right.plot(lambdas, (100 * findings.accuracy).tolist(), color="#0072B2")
    right.set(title="Accuracy and size")
    right.set_ylabel("accuracy on rows left out (%)", color="#0072B2")
    count = right.twinx()
    count.step(lambdas, path.nonzeros.tolist(), color="#E69F00", where="mid")
    count.plot(their_lambdas, (findings.theirs != 0).sum(1), "o", color="#E69F00", markersize=4)
    count.set_ylabel(f"nonzero weights (of {path.weights.shape[1]})", color="#B87700")
    count.set_ylim(0, path.weights.shape[1])
    count.spines[["top"]].set_visible(False)
    path_picture.explain(count, "lower left")
    figure.savefig(picture)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lambdas", type=int, default=50, help="strengths on the path (default: %(default)s)")
    parser.add_argument("--folds", type=int, default=10, help="of the cross-validation (default: %(default)s)")
    parser.add_argument("--comparisons", type=int, default=12, help="with scikit-learn (default: %(default)s)")
    parser.add_argument("--picture", metavar="FILE", help="a PNG file to write (needs matplotlib)")
    args = parser.parse_args(arguments)
    findings = find(args.lambdas, args.folds, args.comparisons)
    report(findings)
    if args.picture:
        draw(findings, args.picture)


if __name__ == "__main__":
    main()
