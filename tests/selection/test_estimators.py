"""The estimators solve what scikit-learn's solve, and choose what its choose."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
from sklearn import linear_model
from sklearn.datasets import load_diabetes, load_iris, make_classification, make_regression
from sklearn.linear_model._coordinate_descent import _alpha_grid
from sklearn.model_selection import KFold, ShuffleSplit, StratifiedKFold
from sklearn.preprocessing import StandardScaler

from regkernels.selection import ElasticNet, ElasticNetCV, SparseLogisticRegression, SparseLogisticRegressionCV
from regkernels.selection.cross_validation import one_standard_error

DIABETES = load_diabetes(return_X_y=True)
IRIS = load_iris(return_X_y=True)
TWO_CLASSES = make_classification(80, 12, n_informative=4, flip_y=0.2, random_state=1)
WIDE = make_regression(40, 120, n_informative=5, noise=2.0, random_state=0)
CORRELATED = make_regression(80, 30, n_informative=8, noise=1.0, effective_rank=6, random_state=0)
UNSCALED = (DIABETES[0] * numpy.logspace(-2, 2, 10), DIABETES[1])


def weights_of(rows: int) -> Any:
    return numpy.random.default_rng(0).uniform(0.1, 2.0, rows)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 1e-3, 0.1])
@pytest.mark.parametrize(("l1_ratio"), [0.0, 0.3, 1.0])
def test_elastic_net(l1_ratio: float, alpha: float, weighted: bool, intercept: bool) -> None:
    X, y = DIABETES
    weights = weights_of(len(X)) if weighted else None
    ours = ElasticNet(alpha, l1_ratio=l1_ratio, fit_intercept=intercept, tol=1e-10).fit(X, y, sample_weight=weights)
    if alpha == 0:
        theirs: Any = linear_model.LinearRegression(fit_intercept=intercept)
    elif l1_ratio == 0:
        total = len(X) if weights is None else weights.sum()
        theirs = linear_model.Ridge(alpha * total, fit_intercept=intercept, solver="cholesky")
    else:
        theirs = linear_model.ElasticNet(alpha, l1_ratio=l1_ratio, fit_intercept=intercept, tol=1e-12, max_iter=10**6)
    theirs.fit(X, y, sample_weight=weights)
    numpy.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-6, atol=1e-6)
    assert numpy.array_equal(ours.coef_ == 0, theirs.coef_ == 0)
    assert abs(ours.intercept_ - theirs.intercept_) < 1e-8
    assert ours.kkt_violation_ <= 1e-10
    numpy.testing.assert_allclose(ours.predict(X), theirs.predict(X), rtol=1e-6)


@pytest.mark.parametrize("name", ["WIDE", "CORRELATED", "UNSCALED"])
def test_ill_conditioned_data(name: str) -> None:
    """More features than samples, features that almost depend on each other, features of other scales."""
    X, y = globals()[name]
    largest = _alpha_grid(X, y, n_alphas=1)[0]
    for share in (0.5, 0.03):
        ours = ElasticNet(share * largest, l1_ratio=1.0, tol=1e-9).fit(X, y)
        theirs = linear_model.Lasso(share * largest, tol=1e-14, max_iter=10**6).fit(X, y)
        numpy.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-5, atol=1e-5 * abs(theirs.coef_).max())
        assert numpy.array_equal(ours.coef_ == 0, theirs.coef_ == 0)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("l1_ratio", [0.5, 1.0])
@pytest.mark.parametrize("data", [TWO_CLASSES, IRIS], ids=["two classes", "three classes"])
def test_sparse_logistic_regression(data: Any, l1_ratio: float, weighted: bool) -> None:
    X, y = data
    X = StandardScaler().fit_transform(X)
    y = numpy.array(["a", "b", "c"])[y]
    weights = weights_of(len(X)) if weighted else None
    total = len(X) if weights is None else weights.sum()
    ours = SparseLogisticRegression(0.03, l1_ratio=l1_ratio).fit(X, y, sample_weight=weights)
    theirs = linear_model.LogisticRegression(
        C=1 / (0.03 * total), l1_ratio=l1_ratio, solver="saga", tol=1e-13, max_iter=10**5, random_state=0
    ).fit(X, y, sample_weight=weights)
    numpy.testing.assert_allclose(ours.coef_, theirs.coef_, atol=2e-6)
    assert numpy.array_equal(ours.coef_ == 0, theirs.coef_ == 0) and 0 < (ours.coef_ == 0).sum() < ours.coef_.size
    numpy.testing.assert_allclose(
        ours.intercept_, theirs.intercept_ - theirs.intercept_.mean() * (len(theirs.intercept_) > 1), atol=2e-6
    )
    assert list(ours.classes_) == list(theirs.classes_)
    numpy.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-6)
    numpy.testing.assert_allclose(ours.predict_log_proba(X), theirs.predict_log_proba(X), atol=1e-5)
    assert list(ours.predict(X)) == list(theirs.predict(X))


# --- choosing the strength ---


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("l1_ratio", [1.0, 0.5, [0.1, 0.7, 1.0]], ids=["lasso", "elastic net", "ratios"])
def test_chooses_what_scikit_learn_chooses(l1_ratio: Any, weighted: bool) -> None:
    X, y = DIABETES
    weights = weights_of(len(X)) if weighted else None
    cv = KFold(5, shuffle=True, random_state=3)
    ours = ElasticNetCV(l1_ratio=l1_ratio, cv=cv, alphas=50).fit(X, y, sample_weight=weights)
    theirs = linear_model.ElasticNetCV(l1_ratio=l1_ratio, cv=cv, alphas=50, tol=1e-9, max_iter=10**5)
    theirs.fit(X, y, sample_weight=weights)
    assert ours.alpha_ == pytest.approx(theirs.alpha_, rel=1e-12) and ours.l1_ratio_ == theirs.l1_ratio_
    numpy.testing.assert_allclose(ours.alphas_, theirs.alphas_, rtol=1e-12)
    assert ours.mse_path_.shape == theirs.mse_path_.shape
    numpy.testing.assert_allclose(ours.mse_path_, theirs.mse_path_, rtol=1e-5)
    numpy.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-4, atol=1e-3)
    assert numpy.array_equal(ours.coef_ == 0, theirs.coef_ == 0)


def test_lasso_cv_with_its_own_tolerance() -> None:
    X, y = DIABETES
    assert ElasticNetCV(l1_ratio=1.0).fit(X, y).alpha_ == pytest.approx(
        linear_model.LassoCV().fit(X, y).alpha_, rel=1e-12
    )


def test_folds_count_alike_whatever_their_weight() -> None:
    X, y = make_regression(60, 8, n_informative=3, noise=60.0, random_state=4)
    weights = numpy.where(numpy.arange(60) < 20, 20.0, 1.0)
    found = ElasticNetCV(l1_ratio=[1.0], cv=KFold(3), alphas=40).fit(X, y, sample_weight=weights)
    theirs = linear_model.ElasticNetCV(l1_ratio=[1.0], cv=KFold(3), alphas=40, tol=1e-9).fit(
        X, y, sample_weight=weights
    )
    assert found.alpha_ == pytest.approx(theirs.alpha_, rel=1e-12)
    assert found.mse_path_.shape == theirs.mse_path_.shape and found.alphas_.shape == theirs.alphas_.shape
    assert found.alpha_ != found.alphas_[numpy.average(found.mse_path_, axis=1, weights=[400, 20, 20]).argmin()]


def test_alphas_that_are_given() -> None:
    X, y = DIABETES
    given = [0.001, 1.0, 0.0, 0.1]
    ours = ElasticNetCV(l1_ratio=1.0, alphas=given, cv=4).fit(X, y)
    assert ours.alphas_.tolist() == [1.0, 0.1, 0.001, 0.0]
    for alpha, scores in zip(ours.alphas_, ours.mse_path_, strict=True):
        model = linear_model.LinearRegression() if alpha == 0 else linear_model.Lasso(alpha, tol=1e-12, max_iter=10**6)
        for (train, test), score in zip(KFold(4).split(X), scores, strict=True):
            error = ((model.fit(X[train], y[train]).predict(X[test]) - y[test]) ** 2).mean()
            assert score == pytest.approx(error, rel=1e-7)


@pytest.mark.parametrize("data", [TWO_CLASSES, IRIS], ids=["two classes", "three classes"])
def test_sparse_logistic_regression_cv(data: Any) -> None:
    """Every score is that of a fit to the fold alone, and the strongest alpha leaves nothing but the intercept."""
    X, y = data
    X = StandardScaler().fit_transform(X)
    ours = SparseLogisticRegressionCV(l1_ratio=1.0, alphas=8, eps=0.01, cv=3).fit(X, y)
    folds = list(StratifiedKFold(3).split(X, y))
    for alpha, scores in zip(ours.alphas_, ours.log_loss_path_, strict=True):
        for (train, test), score in zip(folds, scores, strict=True):
            one = SparseLogisticRegression(alpha, l1_ratio=1.0).fit(X[train], y[train])
            loss = -one.predict_log_proba(X[test])[numpy.arange(len(test)), y[test]].mean()
            assert score == pytest.approx(loss, rel=1e-5)
    assert ours.alpha_ == ours.alphas_[ours.log_loss_path_.mean(1).argmin()]
    strongest = SparseLogisticRegression(ours.alphas_[0] * (1 + 1e-9), l1_ratio=1.0).fit(X, y)
    weaker = SparseLogisticRegression(ours.alphas_[0] * 0.99, l1_ratio=1.0).fit(X, y)
    assert not strongest.coef_.any() and numpy.count_nonzero(weaker.coef_) >= 1
    assert (
        SparseLogisticRegressionCV(l1_ratio=1.0, alphas=8, eps=0.01, cv=3, selection="1se").fit(X, y).alpha_
        >= ours.alpha_
    )


@pytest.mark.parametrize("seed", range(3))
def test_one_standard_error_is_what_the_scores_say(seed: int) -> None:
    X, y = make_regression(60, 8, n_informative=3, noise=40.0, random_state=seed)
    best = ElasticNetCV(l1_ratio=1.0, alphas=40, cv=6).fit(X, y)
    chosen = ElasticNetCV(l1_ratio=1.0, alphas=40, cv=6, selection="1se").fit(X, y)
    scores = best.mse_path_
    assert numpy.array_equal(scores, chosen.mse_path_)
    lowest = scores.mean(1).argmin()
    bound = scores[lowest].mean() + scores[lowest].std(ddof=1) / numpy.sqrt(6)
    within = [alpha for alpha, mean in zip(best.alphas_, scores.mean(1), strict=True) if mean <= bound]
    assert best.alpha_ == best.alphas_[lowest] and chosen.alpha_ == max(within) > best.alpha_
    assert numpy.count_nonzero(chosen.coef_) <= numpy.count_nonzero(best.coef_)


def test_one_standard_error_with_one_fold() -> None:
    scores = numpy.array([[5.0, 1.0, 6.0], [2.0, 1.0, 3.0], [1.0, 1.5, 2.0]])
    assert one_standard_error(scores[:, :1]) == 2
    X, y = DIABETES
    for rule in ("min", "1se"):
        one = ElasticNetCV(cv=ShuffleSplit(1, random_state=0), alphas=10, selection=rule).fit(X, y)
        assert one.alpha_ == one.alphas_[one.mse_path_[:, 0].argmin()]
