"""What docs/selection.md says of scikit-learn's strengths: converted, both have the same solutions."""

from __future__ import annotations

import numpy
import pytest
from sklearn.linear_model import ElasticNet, LogisticRegression
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from regkernels.selection import regularization_path
from tests.selection.common import LINEAR, LOGISTIC, column, linear_model

STRENGTHS = [0.1, 0.02]


@pytest.mark.parametrize("l1_ratio", [1.0, 0.4])
def test_alpha_is_half_of_lambda_for_the_mean_squared_error(l1_ratio: float) -> None:
    x, y = LINEAR.features, LINEAR.targets
    ours = regularization_path(linear_model(), mse_loss, (x, column(y)), STRENGTHS, l1_ratio=l1_ratio)
    for weights, strength in zip(ours.weights, STRENGTHS, strict=True):
        theirs = ElasticNet(strength / 2, l1_ratio=l1_ratio, tol=1e-14, max_iter=100_000).fit(x, y)
        numpy.testing.assert_allclose(weights, theirs.coef_, rtol=0, atol=1e-7)


@pytest.mark.parametrize("l1_ratio", [1.0, 0.4])
def test_c_is_one_over_rows_times_lambda_for_the_log_loss(l1_ratio: float) -> None:
    x, y = LOGISTIC.features, LOGISTIC.targets
    loss = binary_cross_entropy_with_logits
    ours = regularization_path(linear_model(), loss, (x, column(y)), STRENGTHS, l1_ratio=l1_ratio)
    for weights, strength in zip(ours.weights, STRENGTHS, strict=True):
        c = 1 / (len(x) * strength)
        theirs = LogisticRegression(C=c, l1_ratio=l1_ratio, solver="saga", tol=1e-12, max_iter=100_000).fit(x, y)
        numpy.testing.assert_allclose(weights, theirs.coef_[0], rtol=0, atol=1e-6)
