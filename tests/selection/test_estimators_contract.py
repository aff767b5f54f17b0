"""The estimators keep scikit-learn's contract, and say what is wrong."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import _get_check_estimator_ids, estimator_checks_generator

from regkernels import selection
from regkernels.selection import ElasticNet, ElasticNetCV, SparseLogisticRegression, SparseLogisticRegressionCV
from tests.selection.test_estimators import DIABETES, IRIS, TWO_CLASSES, WIDE

ESTIMATORS = [
    ElasticNet(),
    SparseLogisticRegression(),
    ElasticNetCV(alphas=3, cv=3),
    SparseLogisticRegressionCV(alphas=3, cv=3),
]
ABOUT_OTHERS = (
    "check_sample_weights_pandas_series",  # these two skip themselves where there is no pandas
    "data_not_an_array",
    "check_array_api_input",  # and this one where scikit-learn's array interface is not switched on
)


def contract() -> Iterator[Any]:
    for estimator in ESTIMATORS:
        for one, check in estimator_checks_generator(estimator):
            name = _get_check_estimator_ids(check)
            if not any(part in name for part in ABOUT_OTHERS):
                yield pytest.param(one, check, id=f"{type(one).__name__}-{name}")


@pytest.mark.parametrize(("estimator", "check"), list(contract()))
def test_scikit_learns_contract(estimator: Any, check: Any) -> None:
    """What ``check_estimator`` checks; none is expected to fail."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # checks with data that explain nothing
        check(estimator)


def test_inside_scikit_learns_own_tools() -> None:
    X, y = TWO_CLASSES
    search = GridSearchCV(
        make_pipeline(StandardScaler(), SparseLogisticRegression(l1_ratio=1.0)),
        {"sparselogisticregression__alpha": [1e-3, 1e-2, 10.0]},
        cv=3,
    ).fit(X, y)
    assert search.best_params_["sparselogisticregression__alpha"] < 10.0
    assert search.best_estimator_.score(X, y) > 0.7


# --- what is warned of, and what is refused ---


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_constant_target(value: float) -> None:
    X, _ = DIABETES
    with pytest.warns(UserWarning, match="explain nothing of y"):
        found = ElasticNetCV(alphas=5, cv=3).fit(X, numpy.full(len(X), value))
    assert not found.coef_.any() and found.intercept_ == pytest.approx(value)
    assert found.mse_path_.shape == (5, 3) and found.mse_path_.max() < 1e-25
    one = ElasticNet(0.1).fit(X, numpy.full(len(X), value))
    assert not one.coef_.any() and one.intercept_ == pytest.approx(value)


@pytest.mark.parametrize("make", [ElasticNet, SparseLogisticRegression])
def test_too_few_steps_are_warned_of(make: Any) -> None:
    X, y = WIDE
    with pytest.warns(
        ConvergenceWarning, match=r"1 of 1 models have not converged within max_iter=1 steps: for alpha=1e-05 "
    ):
        found = make(1e-5, max_iter=1, tol=1e-12).fit(X, y > 0)
    assert found.n_iter_ == 1 and found.kkt_violation_ > 1e-12


def test_a_bar_shows_how_many_are_solved(capsys: pytest.CaptureFixture[str]) -> None:
    ElasticNetCV(alphas=5, verbose=True).fit(*DIABETES)
    assert "models solved" in capsys.readouterr().out


BAD_ARGUMENTS: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (ElasticNet, {"alpha": -1.0}, ValueError, "alpha must be >= 0, got -1.0"),
    (ElasticNet, {"alpha": float("nan")}, ValueError, "alpha must be >= 0, got nan"),
    (ElasticNet, {"alpha": "strong"}, TypeError, "alpha must be a number >= 0, got 'strong'"),
    (ElasticNet, {"l1_ratio": 1.5}, ValueError, r"l1_ratio must be in \[0, 1\], got 1.5"),
    (ElasticNet, {"tol": 0.0}, ValueError, "tol must be > 0, got 0.0"),
    (ElasticNet, {"max_iter": 0}, ValueError, "max_iter must be a whole number >= 1, got 0"),
    (ElasticNetCV, {"alphas": 0}, ValueError, "alphas must be a whole number >= 1, got 0"),
    (ElasticNetCV, {"alphas": []}, ValueError, "alphas must be a number or a list"),
    (ElasticNetCV, {"alphas": [1.0, -1.0]}, ValueError, "alphas must be >= 0, got -1.0"),
    (ElasticNetCV, {"eps": 0.0}, ValueError, "eps must be > 0, got 0.0"),
    (ElasticNetCV, {"l1_ratio": 0.0}, ValueError, "l1_ratio=0 has no strength.*pass alphas"),
    (ElasticNetCV, {"l1_ratio": []}, ValueError, "l1_ratio is empty: pass a number in"),
    (ElasticNetCV, {"l1_ratio": [0.5, -1.0]}, ValueError, r"l1_ratio must be in \[0, 1\], got -1.0"),
    (ElasticNetCV, {"selection": "max"}, ValueError, "selection must be one of 'min', '1se', got 'max'"),
]


@pytest.mark.parametrize(("make", "options", "error", "text"), BAD_ARGUMENTS)
def test_bad_arguments(make: Any, options: dict[str, Any], error: type[Exception], text: str) -> None:
    estimator = make(**options)
    with pytest.raises(error, match=text):
        estimator.fit(*DIABETES)
    assert not hasattr(estimator, "coef_")


def test_bad_data() -> None:
    X, y = TWO_CLASSES
    with pytest.raises(ValueError, match="y must have two classes or more, got one class: 1"):
        SparseLogisticRegression().fit(X, numpy.ones(len(X), dtype=int))
    labels = numpy.arange(len(X)) < 10
    with pytest.raises(ValueError, match="the training part of fold 0 has no sample of class True; stratify"):
        SparseLogisticRegressionCV(cv=KFold(8)).fit(X, labels)
    with pytest.raises(ValueError, match="positive weight have no sample of class 2"):
        SparseLogisticRegression().fit(*IRIS, sample_weight=(IRIS[1] != 2).astype(float))
    with pytest.raises(ValueError, match="at least one non-zero number"):
        ElasticNet().fit(X, y, sample_weight=numpy.zeros(len(X)))
    with pytest.raises(ValueError, match="test part of a fold has no sample with a positive weight"):
        ElasticNetCV(cv=KFold(8)).fit(X, y, sample_weight=(numpy.arange(len(X)) >= 10).astype(float))


def test_scikit_learn_is_needed_for_the_estimators_only() -> None:
    program = (
        "import sys, regkernels.selection as selection; selection.StackedModels; assert 'sklearn' not in sys.modules; "
        "sys.modules['sklearn'] = None; selection.ElasticNetCV"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (
        done.returncode == 1 and "ImportError: " in done.stderr and "pip install regkernels[selection]" in done.stderr
    )
    with pytest.raises(AttributeError, match="has no attribute 'Ridge'"):
        selection.Ridge  # noqa: B018


def test_random_numbers_are_left_alone() -> None:
    before = torch.random.get_rng_state()
    ElasticNetCV(alphas=5).fit(*DIABETES)
    assert torch.equal(before, torch.random.get_rng_state())
