"""Exact L1 and L2 after the step of optimizers that know nothing of them."""

from regkernels.attach.handle import ProxHandle, attach_prox

__all__ = ["ProxHandle", "attach_prox"]
