"""Finds how strong a penalty should be: by paths of strengths, many models at once, and scikit-learn's estimators.

The penalties and the steps are not here, they are those of `regkernels.optim`; removing what has become zero is `regkernels.structure`'s.
"""

from typing import TYPE_CHECKING, Any

from regkernels.selection.maximum import lambda_grid, lambda_max
from regkernels.selection.path import regularization_path
from regkernels.selection.penalty import subdiff_distance
from regkernels.selection.result import RegularizationPath
from regkernels.selection.stacked import StackedModels

if TYPE_CHECKING:
    from regkernels.selection.cross_validation import ElasticNetCV, SparseLogisticRegressionCV
    from regkernels.selection.estimators import ElasticNet, SparseLogisticRegression

__all__ = [
    "ElasticNet",
    "ElasticNetCV",
    "RegularizationPath",
    "SparseLogisticRegression",
    "SparseLogisticRegressionCV",
    "StackedModels",
    "lambda_grid",
    "lambda_max",
    "regularization_path",
    "subdiff_distance",
]

_ESTIMATORS = {
    "ElasticNet": "estimators",
    "ElasticNetCV": "cross_validation",
    "SparseLogisticRegression": "estimators",
    "SparseLogisticRegressionCV": "cross_validation",
}


def __getattr__(name: str) -> Any:
    """Imports the estimators, which need scikit-learn, with their first use."""
    if name not in _ESTIMATORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_ESTIMATORS[name]}"), name)
