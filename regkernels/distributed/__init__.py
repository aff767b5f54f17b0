"""Knows about runs with more than one process: parameters that are spread over ranks, and what ranks tell each other.

Facts about tensors and messages live here; what a step does with them is said in `regkernels.optim.step`.
"""

from regkernels.distributed.agreement import check_agreement

__all__ = ["check_agreement"]
