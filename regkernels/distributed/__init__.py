"""More than one process: parameters that are spread over ranks, and what ranks tell each other."""

from regkernels.distributed.agreement import check_agreement

__all__ = ["check_agreement"]
