"""Does what the estimators have in common: checks arguments, takes data as tensors, and warns as scikit-learn's do."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor

from regkernels.selection.batched import Solutions, solve
from regkernels.selection.folds import Folds, LeastSquares, Logistic, Multinomial

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.base import is_classifier as is_classifier
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import check_cv as check_cv
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        f"the estimators of regkernels.selection need scikit-learn 1.9 or newer, which cannot be imported ({error}): "
        "pip install regkernels[selection]"
    ) from error


def nonnegative(name: str, value: Any) -> float:
    return _number(name, value, lambda number: number >= 0, ">= 0")


def share(name: str, value: Any) -> float:
    return _number(name, value, lambda number: 0 <= number <= 1, "in [0, 1]")


def positive(name: str, value: Any) -> float:
    return _number(name, value, lambda number: number > 0, "> 0")


def count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")
    return int(value)


def _number(name: str, value: Any, allowed: Callable[[float], bool], words: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number {words}, got {value!r}")
    number = float(value)
    if not (math.isfinite(number) and allowed(number)):
        raise ValueError(f"{name} must be {words}, got {value!r}")
    return number


class Linear(BaseEstimator):
    """Fits a model that is linear in its features, for one strength or on folds for many."""

    fit_intercept: bool
    tol: float
    max_iter: int
    verbose: bool | int

    def _targets(self, y: Any) -> Tensor:
        """Returns checked targets as (n, C); sets what is known of them."""
        raise NotImplementedError

    def _folds(self, x: Tensor, y: Tensor, weights: Tensor) -> Folds:
        raise NotImplementedError

    def _checked(self, X: Any, y: Any, sample_weight: Any) -> tuple[Tensor, Tensor, Tensor]:
        positive("tol", self.tol)
        count("max_iter", self.max_iter)
        X, y = validate_data(self, X, y, dtype=numpy.float64, order="C", y_numeric=isinstance(self, RegressorMixin))
        targets = self._targets(y)
        if sample_weight is None:
            weights = numpy.ones(len(X))
        else:
            weights = _check_sample_weight(sample_weight, X, dtype=numpy.float64, ensure_non_negative=True)
        return torch.tensor(X), targets, torch.tensor(weights)

    def _solve(self, folds: Folds, alphas: Tensor, l1_ratio: float) -> Solutions:
        with _progress(bool(self.verbose)) as progress:
            return solve(
                folds,
                alphas * l1_ratio,
                alphas * (1 - l1_ratio),
                tolerance=float(self.tol),
                max_steps=int(self.max_iter),
                progress=progress,
            )

    def _fit_one(self, x: Tensor, y: Tensor, weights: Tensor, alpha: float, l1_ratio: float) -> None:
        """Sets what has been fitted."""
        folds = self._folds(x, y, weights[None])
        found = self._solve(folds, torch.tensor([alpha], dtype=torch.float64), l1_ratio)
        self._warn_of(found, [alpha])
        intercepts = folds.plain_intercepts(found.coefficients, found.intercepts)[0, 0]
        self._set_fitted(found.coefficients[0, 0].numpy(), intercepts.numpy())
        self.n_iter_: Any = found.steps
        self.kkt_violation_ = float(found.violations)

    def _set_fitted(self, coefficients: Any, intercepts: Any) -> None:
        raise NotImplementedError

    def _warn_of(self, found: Solutions, alphas: Any) -> None:
        unsolved = found.violations > self.tol
        if unsolved.any():
            worst = int(found.violations.amax(0).argmax())
            warnings.warn(
                f"{int(unsolved.sum())} of {unsolved.numel()} models have not converged within max_iter={self.max_iter} steps: "
                f"for alpha={float(alphas[worst]):.4g} the optimality conditions are violated by "
                f"{float(found.violations[:, worst].max()):.2g}, tol is {self.tol:.2g}. Standardise the features, or increase "
                "max_iter",
                ConvergenceWarning,
                stacklevel=3,
            )


class Regressor(RegressorMixin, Linear):
    """Fits and predicts by least squares."""

    def _targets(self, y: Any) -> Tensor:
        return torch.tensor(y, dtype=torch.float64)[:, None]

    def _folds(self, x: Tensor, y: Tensor, weights: Tensor) -> Folds:
        return LeastSquares(x, y, weights, intercept=self.fit_intercept)

    def _set_fitted(self, coefficients: Any, intercepts: Any) -> None:
        self.coef_, self.intercept_ = coefficients[0], float(intercepts[0])

    def predict(self, X: Any) -> Any:
        """Predicts targets, (n,), for features ``X``, (n, p)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=numpy.float64, reset=False)
        return X @ self.coef_ + self.intercept_


class Classifier(ClassifierMixin, Linear):
    """Fits and predicts by logistic regression: two classes share one output, more have one each."""

    def _targets(self, y: Any) -> Tensor:
        check_classification_targets(y)
        self.classes_, numbers_ = numpy.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y must have two classes or more, got one class: {self.classes_[0]}")
        indicators = torch.nn.functional.one_hot(torch.from_numpy(numbers_), len(self.classes_)).double()
        return indicators[:, 1:] if len(self.classes_) == 2 else indicators

    def _folds(self, x: Tensor, y: Tensor, weights: Tensor) -> Folds:
        kind = Logistic if y.shape[1] == 1 else Multinomial
        shares = weights @ y / weights.sum(1, keepdim=True)
        present = (shares > 0) & (shares < 1)
        if not present.all():
            fold, index = (~present).nonzero()[0].tolist()
            which = self.classes_[
                index if shares[fold, index] == 0 and y.shape[1] > 1 else int(shares[fold, index] == 0)
            ]
            where = (
                f"the training part of fold {fold} has"
                if len(weights) > 1
                else "the samples with a positive weight have"
            )
            raise ValueError(f"{where} no sample of class {which}; stratify the folds, or leave the class out")
        return kind(x, y, weights, intercept=self.fit_intercept)

    def _set_fitted(self, coefficients: Any, intercepts: Any) -> None:
        if len(intercepts) > 1:
            intercepts = intercepts - intercepts.mean()  # softmax does not see what all have in common
        self.coef_, self.intercept_ = coefficients, intercepts

    def decision_function(self, X: Any) -> Any:
        """Returns log-odds, (n,) for two classes; for more, (n, classes), what softmax makes probabilities of."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=numpy.float64, reset=False)
        outputs = X @ self.coef_.T + self.intercept_
        return outputs[:, 0] if len(self.classes_) == 2 else outputs

    def predict_proba(self, X: Any) -> Any:
        """Returns probabilities, (n, classes), in the order of ``classes_``."""
        outputs = torch.from_numpy(self.decision_function(X))
        if outputs.dim() == 1:
            return torch.stack([(-outputs).sigmoid(), outputs.sigmoid()], 1).numpy()
        return outputs.softmax(1).numpy()

    def predict_log_proba(self, X: Any) -> Any:
        """Returns logarithms of the probabilities, (n, classes)."""
        outputs = torch.from_numpy(self.decision_function(X))
        if outputs.dim() == 1:
            outputs = torch.stack([torch.zeros_like(outputs), outputs], 1)
        return outputs.log_softmax(1).numpy()

    def predict(self, X: Any) -> Any:
        """Predicts the most probable class of each row of ``X``, (n,)."""
        outputs = self.decision_function(X)
        return self.classes_[(outputs > 0).astype(int) if outputs.ndim == 1 else outputs.argmax(1)]


@contextmanager
def _progress(wanted: bool) -> Iterator[Callable[[int, int], object]]:
    """Shows a bar with the number of models that are solved."""
    if not wanted:
        yield lambda done, of: None
        return
    try:
        from rich.progress import Progress
    except ImportError as error:
        raise ImportError(f"verbose=True needs rich ({error}): pip install regkernels[selection]") from error
    with Progress() as bar:
        task = bar.add_task("models solved", total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)
