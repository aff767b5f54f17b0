"""Fits models of one strength behind scikit-learn's interface: an elastic net, and a logistic regression that is as sparse."""

from __future__ import annotations

from typing import Any

from regkernels.selection.linear import Classifier, Linear, Regressor, nonnegative, share


class _OneStrength(Linear):
    def __init__(
        self,
        alpha: float = 1.0,
        *,
        l1_ratio: float = 0.5,
        fit_intercept: bool = True,
        max_iter: int = 10_000,
        tol: float = 1e-6,
        verbose: bool | int = False,
    ) -> None:
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter
        self.tol = tol
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Fits to features ``X``, (n, p), and targets ``y``, (n,), which count by ``sample_weight``, (n,), >= 0. Returns itself.

        Raises:
            TypeError, ValueError: for data and arguments that are not allowed; nothing is fitted then.
        """
        alpha, l1_ratio = nonnegative("alpha", self.alpha), share("l1_ratio", self.l1_ratio)
        self._fit_one(*self._checked(X, y, sample_weight), alpha, l1_ratio)
        return self


class ElasticNet(Regressor, _OneStrength):
    """Fits a linear regression with an elastic net penalty, as ``sklearn.linear_model.ElasticNet``, to the exact solution.

    Minimises, with scikit-learn's conventions,

        1 / (2 n) * ||y - X w - b||^2 + alpha * l1_ratio * sum |w| + alpha * (1 - l1_ratio) / 2 * sum w^2

    by proximal steps of `regkernels.optim.SGD` and Newton steps on the coefficients that are not zero, until the optimality
    conditions hold.

    Args:
        alpha: strength, >= 0.
        l1_ratio: share of L1, in [0, 1]; 1 is the lasso.
        fit_intercept: whether there is a ``b``, which is not penalised.
        max_iter: most steps. Beyond it a ``ConvergenceWarning`` is given.
        tol: by how much the optimality conditions may be violated, as a share of the largest gradient at zero, where
            scikit-learn has a bound of the objective.
        verbose: shows a progress bar.

    Attributes:
        coef_: (p,), with exact zeros. intercept_: a number.
        n_iter_: steps that were taken. kkt_violation_: what is left of ``tol``.
        n_features_in_, feature_names_in_: of the data.
    """


class SparseLogisticRegression(Classifier, _OneStrength):
    """Fits a logistic regression with an elastic net penalty, for two classes or more, to the exact solution.

    Minimises the mean of the negative log-likelihood plus the penalty of `ElasticNet`. Of more than two classes each has
    coefficients of its own (softmax).

    Args:
        alpha: strength, >= 0; ``C`` of scikit-learn's ``LogisticRegression`` is ``1 / (n * alpha)``.
        l1_ratio, fit_intercept, max_iter, tol, verbose: as in `ElasticNet`; L1 alone is ``l1_ratio=1``.

    Attributes:
        classes_: labels, sorted.
        coef_: (1, p) for two classes, else (classes, p), with exact zeros. intercept_: (1,) or (classes,), then of mean 0.
        n_iter_, kkt_violation_, n_features_in_, feature_names_in_: as in `ElasticNet`.
    """

    def __init__(
        self,
        alpha: float = 0.01,
        *,
        l1_ratio: float = 0.5,
        fit_intercept: bool = True,
        max_iter: int = 10_000,
        tol: float = 1e-6,
        verbose: bool | int = False,
    ) -> None:
        super().__init__(
            alpha, l1_ratio=l1_ratio, fit_intercept=fit_intercept, max_iter=max_iter, tol=tol, verbose=verbose
        )
