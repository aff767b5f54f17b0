"""For linear models StrengthCV and scikit-learn's LogisticRegressionCV choose the same strength."""

from __future__ import annotations

import warnings
from typing import Any

import numpy
import pytest
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from regkernels.selection import StrengthCV


@pytest.mark.parametrize(
    ("load", "loss", "outputs", "strengths", "rows", "solver"),
    [
        (
            load_breast_cancer,
            binary_cross_entropy_with_logits,
            1,
            [2e-3, 6e-3, 2e-2, 6e-2],
            569,
            {
                "solver": "liblinear",
                "intercept_scaling": 100.0,
            },  # its intercept is penalised, the less the larger this is
        ),
        (load_digits, cross_entropy, 10, numpy.geomspace(1e-3, 1e-1, 4), 300, {"solver": "saga", "tol": 1e-3}),
    ],
)
def test_the_strength_and_the_score_of_scikit_learn(
    load: Any, loss: Any, outputs: int, strengths: Any, rows: int, solver: Any
) -> None:
    X, y = load(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X[:rows], y[:rows], random_state=0, stratify=y[:rows])
    scaler = StandardScaler().fit(X)
    X, X_test = scaler.transform(X), scaler.transform(X_test)
    options: dict[str, Any] = {"lr": 0.05, "epochs": 500, "batch_size": None, "options": {"weight_decay": 0.0}}
    found = StrengthCV(nn.Linear(X.shape[1], outputs).double(), loss, strengths, **options).fit(X, y)
    inverse = 1 / (0.8 * len(X) * numpy.array(strengths))  # C weighs the sum over the rows of a fold's training part
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs = LogisticRegressionCV(
            Cs=inverse,
            l1_ratios=(1,),
            cv=5,
            scoring="neg_log_loss",
            random_state=0,
            use_legacy_attributes=False,
            **solver,
        ).fit(X, y)
    assert inverse[found.best_index_] == theirs.C_
    means = numpy.asarray(theirs.scores_).squeeze().mean(0)
    numpy.testing.assert_allclose(found.cv_results_["mean_test_score"], means, atol=0.02)
    score = float((theirs.predict(X_test) == y_test).mean())
    assert found.score(X_test, y_test) == pytest.approx(score, abs=0.015)
