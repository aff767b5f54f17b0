"""Notices torch.distributed.optim.ZeroRedundancyOptimizer, which gives each rank other parameters and does not say so."""

from __future__ import annotations

import sys
from typing import Any

_MODULE = "torch.distributed.optim.zero_redundancy_optimizer"
_MOST_CALLS = 12
"""How many calls may lie between it and the constructor that asks; subclasses and functools.partial add some."""


def process_group_of_maker() -> Any:
    """Returns the process group of the `ZeroRedundancyOptimizer` that is making an optimizer just now; None where there is none.

    What it hands over looks like a whole model: a norm would be that of one rank's share, and nobody would notice. So the
    calls are looked at that lead here.
    """
    module = sys.modules.get(_MODULE)
    if module is None:
        return None
    frame: Any = sys._getframe(1)
    for _ in range(_MOST_CALLS):
        if frame is None:
            return None
        if frame.f_globals.get("__name__") == _MODULE and frame.f_code.co_name == "_init_local_optimizer":
            maker = frame.f_locals.get("self")
            return maker.process_group if isinstance(maker, module.ZeroRedundancyOptimizer) else None
        frame = frame.f_back
    return None
