"""Offers weight regularisation and the optimizer step in one pass over parameter memory.

Its rooms, and who knows of whom, are listed in docs/architecture.md; names are only collected here.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

import regkernels.floor  # noqa: F401  (first: what follows needs a torch that is new enough)

# isort: split
from regkernels import distributed, optim, penalties, prox, reference
from regkernels._version import __version__
from regkernels.attach import ProxHandle, attach_prox
from regkernels.backends.info import info
from regkernels.flat import FlatParameters
from regkernels.param_groups import param_groups
from regkernels.penalties import *  # noqa: F403  (what there is, is said there only)
from regkernels.penalties import __all__ as __all__  # without it mypy does not know the names
from regkernels.table import formats

if TYPE_CHECKING:
    from regkernels import selection
    from regkernels.structure import Compacted, SparsityReport, compact, load_compacted, sparsity_report

__all__ = [  # noqa: F811
    "Compacted",
    "FlatParameters",
    "ProxHandle",
    "SparsityReport",
    "__version__",
    "attach_prox",
    "compact",
    "distributed",
    "info",
    "load_compacted",
    "optim",
    "param_groups",
    "prox",
    "reference",
    "selection",
    "sparsity_report",
]
__all__ += penalties.__all__

# Optimizers that were pickled whole name the module where this stood in 0.1.
sys.modules["regkernels.precision"] = formats

_OF_STRUCTURE = ("Compacted", "SparsityReport", "compact", "load_compacted", "sparsity_report")


def __getattr__(name: str) -> Any:
    """Imports with its first use what a training loop does not need."""
    if name == "selection":
        return import_module("regkernels.selection")
    if name in _OF_STRUCTURE:
        return getattr(import_module("regkernels.structure"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
