"""Optimizers: torch.optim's, with exact L1 and L2 in one pass over memory."""

from regkernels.optim.adam import Adam
from regkernels.optim.adamw import AdamW
from regkernels.optim.optimizer import Optimizer, Stats
from regkernels.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "Stats"]
