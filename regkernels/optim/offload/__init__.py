"""Keeps an optimizer on the CPU for a model on an accelerator, with the memory and the copies that this takes.

The step is that of the optimizer that is kept on the CPU; nothing here computes one.
"""

from regkernels.optim.offload.optimizer import CPUOffload

__all__ = ["CPUOffload"]
