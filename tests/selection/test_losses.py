"""Losses that sum over samples are told from those that take their mean."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from regkernels.selection import StrengthCV
from tests.selection.test_strength_cv import NUMBERS, X


@pytest.mark.parametrize(
    "loss",
    [
        nn.MSELoss(reduction="sum"),
        lambda outputs, targets: (outputs - targets).square().sum() / 62,
        lambda outputs, targets: torch.relu((outputs - targets).abs() - 3).sum(),
    ],
)
def test_a_sum_is_told_from_a_mean_where_many_rows_count_nothing(loss: Any) -> None:
    """The first rows, or all, are fitted already."""
    module = nn.Linear(6, 1, bias=False)
    nn.init.zeros_(module.weight)
    y = numpy.where(numpy.arange(62) < 40, 0.0, 1e-3 * NUMBERS)
    for targets in (y, 0 * y):
        with pytest.raises(ValueError, match="loss must be a mean over the samples, got one that doubles"):
            StrengthCV(module, loss, [1e-3], cv=2, epochs=1).fit(X, targets)


def test_a_mean_where_many_rows_count_nothing_is_one() -> None:
    module = nn.Linear(6, 1, bias=False)
    nn.init.zeros_(module.weight)
    StrengthCV(module, mse_loss, [1e-3], cv=2, epochs=1).fit(X, 0 * NUMBERS)


def test_a_small_mean_is_no_sum() -> None:
    """Of numbers so small that what is told apart once was: they double with the samples as zeros do."""
    module = nn.Linear(4, 1)
    nn.init.zeros_(module.weight), nn.init.zeros_(module.bias)
    small = StrengthCV(module, mse_loss, [1e-3], cv=2, epochs=1).fit(X[:, :4], 1e-5 * NUMBERS)
    assert small.best_score_ < 0
