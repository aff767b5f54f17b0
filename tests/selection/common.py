"""What the tests of `regkernels.selection` have in common."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from regkernels.selection import RegularizationPath, lambda_max, regularization_path
from tests.support import problems

LINEAR, LOGISTIC = problems.linear(), problems.logistic()


def half_mse(output: Tensor, target: Tensor) -> Tensor:
    """As scikit-learn's Lasso and ElasticNet have it, with the factor 1/2."""
    return nn.functional.mse_loss(output, target) / 2


def linear_model(outputs: int = 1, *, bias: bool = True) -> nn.Linear:
    """For the 12 columns of the problems; float64."""
    return nn.Linear(12, outputs, bias=bias).double()


def column(targets: Tensor) -> Tensor:
    """As the output of a linear layer has it: shape (rows, 1)."""
    return targets[:, None].to(torch.float64)


X, Y = LINEAR.features, column(LINEAR.targets)
MAXIMUM = lambda_max(linear_model(), half_mse, (X, Y))


def path(*args: Any, model: nn.Module | None = None, **options: Any) -> RegularizationPath:
    """A linear path in which every warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return regularization_path(model or linear_model(), half_mse, (X, Y), *args, **options)
