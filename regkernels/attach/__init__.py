"""Adds exact L1 and L2 after the step of optimizers that know nothing of them.

How weights are shrunk is not decided here: that is the backends' `proximal`, as `regkernels.reference` specifies it.
"""

from regkernels.attach.attach import attach_prox
from regkernels.attach.handle import ProxHandle

__all__ = ["ProxHandle", "attach_prox"]
