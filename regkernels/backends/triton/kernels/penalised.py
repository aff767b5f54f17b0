"""Makes steps 8 to 11 where a penalty beyond l1, or a bound, follows the rule. Same names and order of lines as in
regkernels/reference/step.py and csrc/penalised.h."""

from __future__ import annotations

import triton
import triton.language as tl

from regkernels.backends.triton.kernels.shrink import divide, limited, soft_threshold


@triton.jit
def clamp(z, lower, upper):
    z = tl.where(z <= lower, lower, z)
    return tl.where(z >= upper, upper, z)


@triton.jit
def divisor_of(s, h, PER_ELEMENT: tl.constexpr):
    divisor = h.shrink_divisor
    if PER_ELEMENT:
        divisor = tl.where(h.shrink_per_step != 0, h.shrink_per_step * s + 1.0, divisor)
    return divisor


@triton.jit
def penalised_step(z, s, l1_weight, h, OPERATOR: tl.constexpr, PER_ELEMENT: tl.constexpr, WEIGHTED: tl.constexpr):
    """Makes steps 8 to 11: the penalty and proximal decay in the metric s, within the limit, then the bounds. OPERATOR None: l1."""
    divisor = divisor_of(s, h, PER_ELEMENT)
    if OPERATOR is None:
        t = h.threshold
        if PER_ELEMENT:
            t = tl.where(h.threshold_per_step != 0, h.threshold_per_step * s, t)
        if WEIGHTED:
            t = t * l1_weight
        p = divide(soft_threshold(z, t), divisor)
    else:
        t = tl.broadcast_to(divide(h.gain * s, divisor), z.shape)
        u = t * h.strength
        v = divide(z, divisor)
        p = tl.where(u > 0, OPERATOR(v, t, u, h.strength, h.shape), v)
    if PER_ELEMENT:
        p = limited(z, p, h.largest_shrink)
    return clamp(p, h.lower, h.upper)
