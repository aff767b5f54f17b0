"""Counts zero rows, filters and columns of any torch model, and removes them; keeps what is left on disk.

What makes weights zero is not here: the penalties are `regkernels.optim`'s, and how strong they should be `regkernels.selection` finds.
"""

from regkernels.structure.compaction import compact
from regkernels.structure.files import load_compacted
from regkernels.structure.report import ParameterSparsity, SparsityReport, sparsity_report
from regkernels.structure.results import Compacted, Kept, Shrunk

__all__ = [
    "Compacted",
    "Kept",
    "ParameterSparsity",
    "Shrunk",
    "SparsityReport",
    "compact",
    "load_compacted",
    "sparsity_report",
]
