"""Finds how strong a penalty should be: by paths of strengths, by cross-validation, and by training many models at once.

The penalties and the steps are not here, they are those of `regkernels.optim`; removing what has become zero is `regkernels.structure`'s.
Cross-validated linear models are scikit-learn's.
"""

from typing import TYPE_CHECKING, Any

from regkernels.selection.maximum import lambda_grid, lambda_max
from regkernels.selection.path import regularization_path
from regkernels.selection.penalty import subdiff_distance
from regkernels.selection.result import RegularizationPath
from regkernels.selection.stacked import StackedModels

if TYPE_CHECKING:
    from regkernels.selection.strength_cv import StrengthCV

__all__ = [
    "RegularizationPath",
    "StackedModels",
    "StrengthCV",
    "lambda_grid",
    "lambda_max",
    "regularization_path",
    "subdiff_distance",
]


def __getattr__(name: str) -> Any:
    """Imports `StrengthCV`, which needs scikit-learn, with its first use."""
    if name != "StrengthCV":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from regkernels.selection.strength_cv import StrengthCV

    return StrengthCV
