"""Offers torch.optim's optimizers, with exact L1 and L2 in one pass over memory.

Each has a file of its own. What a step does is in `step`, what loading checks in `checkpoint`, an optimizer kept on the CPU in `offload`,
steps within the backward pass in `release`; the arithmetic is not here but in the backends.
"""

from regkernels.optim.adagrad import Adagrad
from regkernels.optim.adam import Adam
from regkernels.optim.adamw import AdamW
from regkernels.optim.lion import Lion
from regkernels.optim.offload import CPUOffload
from regkernels.optim.optimizer import Optimizer
from regkernels.optim.options import Common
from regkernels.optim.penalty_keys import Penalties
from regkernels.optim.radam import RAdam
from regkernels.optim.release import GradientRelease, step_in_backward
from regkernels.optim.rmsprop import RMSprop
from regkernels.optim.sgd import SGD
from regkernels.optim.stats import Stats

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "CPUOffload",
    "Common",
    "GradientRelease",
    "Lion",
    "Optimizer",
    "Penalties",
    "RAdam",
    "RMSprop",
    "Stats",
    "step_in_backward",
]
