"""Penalties for the loss: what they add to it and their gradients, in one fused pass over all parameters each way.

What an optimizer does to weights by itself is not here: its keys are in `regkernels.optim`, its operators in `regkernels.prox`.
"""

from regkernels.penalties.l1_l2 import elastic_net_penalty, l1_penalty, l2_penalty
from regkernels.penalties.sparse import (
    group_l1_penalty,
    huber_penalty,
    l0_penalty,
    l_half_penalty,
    log_sum_penalty,
    mcp_penalty,
    scad_penalty,
)

__all__ = [
    "elastic_net_penalty",
    "group_l1_penalty",
    "huber_penalty",
    "l0_penalty",
    "l1_penalty",
    "l2_penalty",
    "l_half_penalty",
    "log_sum_penalty",
    "mcp_penalty",
    "scad_penalty",
]
