"""Registers operators of torch (``torch.ops.regkernels``) over the kernels, with their derivatives.

What a person calls is in `regkernels.penalties` and `regkernels.prox`, which check what they are given.
"""

from regkernels.ops import groups, l1_l2, proximal, values

__all__ = ["groups", "l1_l2", "proximal", "values"]
