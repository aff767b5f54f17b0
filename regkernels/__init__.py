"""Weight regularisation and the optimizer step in one pass over parameter memory."""

from regkernels import optim, prox, reference
from regkernels._version import __version__
from regkernels.attach import ProxHandle, attach_prox
from regkernels.diagnostics import info
from regkernels.flat import FlatParameters
from regkernels.param_groups import param_groups
from regkernels.penalties import elastic_net_penalty, l1_penalty, l2_penalty

__all__ = [
    "FlatParameters",
    "ProxHandle",
    "__version__",
    "attach_prox",
    "elastic_net_penalty",
    "info",
    "l1_penalty",
    "l2_penalty",
    "optim",
    "param_groups",
    "prox",
    "reference",
]
