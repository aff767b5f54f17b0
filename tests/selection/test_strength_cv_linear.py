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
    ("load", "loss", "outputs", "strengths", "rows"),
    [
        (load_breast_cancer, binary_cross_entropy_with_logits, 1, numpy.geomspace(1e-3, 1e-1, 5), 569),
        (load_digits, cross_entropy, 10, numpy.geomspace(1e-4, 1e-1, 4), 300),
    ],
)
def test_the_strength_and_the_score_of_scikit_learn(
    load: Any, loss: Any, outputs: int, strengths: Any, rows: int
) -> None:
    X, y = load(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X[:rows], y[:rows], random_state=0, stratify=y[:rows])
    scaler = StandardScaler().fit(X)
    X, X_test = scaler.transform(X), scaler.transform(X_test)
    found = StrengthCV(
        nn.Linear(X.shape[1], outputs).double(),
        loss,
        strengths,
        lr=0.05,
        epochs=300,
        batch_size=None,
        options={"weight_decay": 0.0},
    ).fit(X, y)
    inverse = 1 / (0.8 * len(X) * strengths)  # C weighs the sum over the rows of a fold's training part
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs = LogisticRegressionCV(
            Cs=inverse,
            l1_ratios=(1,),
            solver="saga",
            cv=5,
            scoring="neg_log_loss",
            tol=1e-2,
            random_state=0,
            use_legacy_attributes=False,
        ).fit(X, y)
    print(found.cv_results_["mean_test_score"], numpy.asarray(theirs.scores_).squeeze().mean(0))
    assert 0 < found.best_index_ < len(strengths) - 1
    assert theirs.C_ == inverse[found.best_index_]
    means = numpy.asarray(theirs.scores_).squeeze().mean(0)
    numpy.testing.assert_allclose(found.cv_results_["mean_test_score"], means, atol=0.02)
    assert found.score(X_test, y_test) == pytest.approx(theirs.predict(X_test).__eq__(y_test).mean(), abs=0.015)
