"""Finds how strong a penalty should be: by paths of strengths, and by training many models at once.

The penalties and the steps are not here, they are those of `regkernels.optim`; removing what has become zero is `regkernels.structure`'s.
Cross-validated linear models are scikit-learn's.
"""

from regkernels.selection.maximum import lambda_grid, lambda_max
from regkernels.selection.path import regularization_path
from regkernels.selection.penalty import subdiff_distance
from regkernels.selection.result import RegularizationPath
from regkernels.selection.stacked import StackedModels

__all__ = [
    "RegularizationPath",
    "StackedModels",
    "lambda_grid",
    "lambda_max",
    "regularization_path",
    "subdiff_distance",
]
