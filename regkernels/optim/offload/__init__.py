"""An optimizer on the CPU for a model on an accelerator: the optimizer itself, and the memory and copies between the two.

The step is that of the optimizer that is kept on the CPU; nothing here computes one.
"""

from regkernels.optim.offload.optimizer import CPUOffload

__all__ = ["CPUOffload"]
