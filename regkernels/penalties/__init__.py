"""Offers penalties for the loss: what they add to it and their gradients, in one fused pass over all parameters each way.

What an optimizer does to weights by itself is not here: its keys are in `regkernels.optim`, its operators in `regkernels.prox`.
"""

from regkernels.penalties import sparse
from regkernels.penalties.l1_l2 import elastic_net_penalty, l1_penalty, l2_penalty
from regkernels.penalties.sparse import *  # noqa: F403  (what there is, is said there only)
from regkernels.penalties.sparse import __all__ as __all__  # without it mypy does not know the names

__all__ = ["elastic_net_penalty", "l1_penalty", "l2_penalty"]  # noqa: F811
__all__ += sparse.__all__
