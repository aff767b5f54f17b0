"""Chooses strengths by cross-validation behind scikit-learn's interface; all folds and strengths are solved at once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from regkernels.selection.folds import Folds
from regkernels.selection.linear import (
    Classifier,
    Linear,
    Regressor,
    check_cv,
    count,
    is_classifier,
    nonnegative,
    positive,
    share,
)
from regkernels.validation import one_of

_ELEMENTS_AT_ONCE = 2**25
"""Of the outputs of all models on all rows; above it one fold is solved after the other."""


def one_standard_error(scores: Any) -> int:
    """Returns which strength the rule of one standard error chooses: the first whose mean is within that of the best.

    Args:
        scores: (strengths, folds), the lower the better; strengths descend, so that the first is the sparsest.

    The standard error is ``sqrt(mean((scores - mean)**2) / (folds - 1))``, as glmnet's ``cvsd``. With one fold there is none,
    and it is 0.

    Source: Breiman et al., Classification and Regression Trees (1984), section 3.4.3.
    """
    means = scores.mean(1)
    best = int(means.argmin())
    error = numpy.sqrt(scores[best].var() / max(1, scores.shape[1] - 1))
    return int((means <= means[best] + error).argmax())


class _CrossValidated(Linear):
    def __init__(
        self,
        *,
        l1_ratio: float | Sequence[float] = 0.5,
        eps: float = 1e-3,
        alphas: int | Sequence[float] = 100,
        fit_intercept: bool = True,
        max_iter: int = 10_000,
        tol: float = 1e-6,
        cv: Any = None,
        selection: str = "min",
        verbose: bool | int = False,
    ) -> None:
        self.l1_ratio = l1_ratio
        self.eps = eps
        self.alphas = alphas
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter
        self.tol = tol
        self.cv = cv
        self.selection = selection
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Chooses ``alpha_`` and ``l1_ratio_`` on the folds and fits all data with them. Returns itself.

        Args:
            X: features, (n, p).
            y: targets, (n,).
            sample_weight: (n,), >= 0: counts in the fits and in the scores of the folds.

        Raises:
            TypeError, ValueError: for data and arguments that are not allowed; nothing is fitted then.
        """
        one_of("selection", self.selection, ("min", "1se"))
        ratios = [share("l1_ratio", ratio) for ratio in numpy.atleast_1d(numpy.asarray(self.l1_ratio, dtype=object))]
        if not ratios:
            raise ValueError("l1_ratio is empty: pass a number in [0, 1], or a list of them")
        x, targets, weights = self._checked(X, y, sample_weight)
        grids = self._grids(x, targets, weights, ratios)
        labels = targets[:, 0] if targets.shape[1] == 1 else targets.argmax(1)
        splits = list(check_cv(self.cv, labels.numpy(), classifier=is_classifier(self)).split(X, labels.numpy()))
        training = torch.zeros(len(splits), len(x), dtype=torch.float64)
        tests = torch.zeros_like(training)
        for fold, (train, test) in enumerate(splits):
            training[fold].index_add_(0, torch.as_tensor(train), weights[train])
            tests[fold].index_add_(0, torch.as_tensor(test), weights[test])
        for name, part in (("training", training), ("test", tests)):
            if not (part.sum(1) > 0).all():
                raise ValueError(f"the {name} part of a fold has no sample with a positive weight; choose another cv")
        scores = self._scores(x, targets, training, tests, grids, ratios)
        means = scores.mean(2)  # each fold counts alike, also where samples have weights, as in scikit-learn
        which, index = (int(i) for i in numpy.unravel_index(means.argmin(), means.shape))
        if self.selection == "1se":
            index = one_standard_error(scores[which])
        self.alpha_, self.l1_ratio_ = float(grids[which][index]), ratios[which]
        single = len(ratios) == 1
        self.alphas_ = (
            numpy.stack(grids)[0] if single or isinstance(self._given(), numpy.ndarray) else numpy.stack(grids)
        )
        self._set_scores(scores[0] if single else scores)
        self._fit_one(x, targets, weights, self.alpha_, self.l1_ratio_)
        return self

    def _set_scores(self, scores: Any) -> None:
        raise NotImplementedError

    def _given(self) -> Any:
        """Returns ``alphas`` as a descending array, or the number of them."""
        if numpy.ndim(self.alphas) == 0:
            return count("alphas", self.alphas)
        given = numpy.array([nonnegative("alphas", alpha) for alpha in self.alphas])  # type: ignore[union-attr]
        if given.ndim != 1 or not len(given):
            raise ValueError(f"alphas must be a number or a list of strengths, got {self.alphas!r}")
        return numpy.sort(given)[::-1]

    def _grids(self, x: Tensor, y: Tensor, weights: Tensor, ratios: list[float]) -> list[Any]:
        """Makes the strengths to try for each ratio, descending, as scikit-learn's ``_alpha_grid``."""
        eps = positive("eps", self.eps)
        given = self._given()
        if isinstance(given, numpy.ndarray):
            return [given] * len(ratios)
        if min(ratios) == 0:
            raise ValueError("l1_ratio=0 has no strength at which all coefficients are zero; pass alphas")
        largest = float(self._folds(x, y, weights[None]).largest_at_null())
        smallest = numpy.finfo(numpy.float64).resolution
        if largest <= smallest:
            warnings.warn(
                "the features explain nothing of y, which may be constant: all coefficients are zero, whatever alpha is",
                UserWarning,
                stacklevel=3,
            )
        maxima = [largest / ratio for ratio in ratios]
        return [numpy.geomspace(m, m * eps, given) if m > smallest else numpy.full(given, smallest) for m in maxima]

    def _scores(
        self, x: Tensor, y: Tensor, training: Tensor, tests: Tensor, grids: list[Any], ratios: list[float]
    ) -> Any:
        """Returns the mean loss of each fold's test part, (ratios, strengths, folds)."""
        at_once = len(training) if len(training) * len(grids[0]) * y.numel() <= _ELEMENTS_AT_ONCE else 1
        parts: list[list[Tensor]] = [[] for _ in ratios]
        for own, test in zip(training.split(at_once), tests.split(at_once), strict=True):
            folds = self._folds(x, y, own)
            for scores, grid, ratio in zip(parts, grids, ratios, strict=True):
                alphas = torch.from_numpy(grid.copy())
                found = self._solve(folds, alphas, ratio)
                self._warn_of(found, grid)
                scores += [
                    self._score(folds, found.coefficients[i], found.intercepts[i], i, w) for i, w in enumerate(test)
                ]
        return torch.stack([torch.stack(each, 1) for each in parts]).numpy()

    def _score(self, folds: Folds, coefficients: Tensor, intercepts: Tensor, fold: int, weights: Tensor) -> Tensor:
        """Returns the mean loss, (A,), on the rows of a fold's test part."""
        shift = folds.unit[fold] * intercepts - (coefficients * folds.means[fold]).sum(-1)
        rows = weights > 0
        outputs = coefficients @ folds.x[rows].T + shift[..., None]
        losses = folds.loss_of(outputs, folds.y[rows])
        return losses @ weights[rows] / weights.sum()


class ElasticNetCV(Regressor, _CrossValidated):
    """Fits an `ElasticNet` whose ``alpha`` and ``l1_ratio`` cross-validation chooses, as ``sklearn.linear_model.ElasticNetCV``.

    All folds and all strengths are solved at once, by one update for all of them per step.

    Args:
        l1_ratio: share of L1, in [0, 1], or a list of which one is chosen.
        eps: smallest strength of the grid, as a share of the largest.
        alphas: how many strengths, evenly spaced in their logarithm below the smallest one at which all coefficients are zero;
            or a list of them.
        cv: folds, as scikit-learn takes them: None for 5, a number, a splitter or an iterable of index pairs.
        selection: "min" takes the strength with the smallest mean error; "1se" the largest whose mean error is within one standard
            error of it, for the same ``l1_ratio``: fewer coefficients at about the same error.
        fit_intercept, max_iter, tol, verbose: as in `ElasticNet`.

    Attributes:
        alpha_, l1_ratio_: what was chosen.
        alphas_: (alphas,), descending; (ratios, alphas) for a list of ratios and a grid.
        mse_path_: (alphas, folds), mean squared error on the test part of each fold; (ratios, alphas, folds) for a list of ratios.
        coef_, intercept_, n_iter_, kkt_violation_, n_features_in_, feature_names_in_: of the fit to all data, as in `ElasticNet`.
    """

    def _set_scores(self, scores: Any) -> None:
        self.mse_path_ = 2 * scores


class SparseLogisticRegressionCV(Classifier, _CrossValidated):
    """Fits a `SparseLogisticRegression` whose ``alpha`` and ``l1_ratio`` cross-validation chooses.

    Args:
        cv: folds, as scikit-learn takes them; None and numbers are stratified by class.
        l1_ratio, eps, alphas, selection, fit_intercept, max_iter, tol, verbose: as in `ElasticNetCV`.

    Attributes:
        alpha_, l1_ratio_, alphas_: as in `ElasticNetCV`.
        log_loss_path_: (alphas, folds), mean negative log-likelihood on the test part of each fold; (ratios, alphas, folds) for a
            list of ratios.
        classes_, coef_, intercept_, n_iter_, kkt_violation_, n_features_in_, feature_names_in_: of the fit to all data, as in
            `SparseLogisticRegression`.
    """

    def _set_scores(self, scores: Any) -> None:
        self.log_loss_path_ = scores
