"""Makes steps in the backward pass, and frees each gradient as soon as it is used.

The step of a bucket of parameters is the common one; what stands here says when it is made, and for which parameters.
"""

from regkernels.optim.release.release import GradientRelease, step_in_backward

__all__ = ["GradientRelease", "step_in_backward"]
