"""Makes steps 8 to 11 where a penalty beyond l1, or a bound, follows the rule. Same names and order of lines as in
regkernels/reference/step.py and csrc/penalised.h."""

from __future__ import annotations

import triton
import triton.language as tl

from regkernels.backends.triton.kernels.shrink import divide, divisor_of, limited, proximal_step


@triton.jit
def clamp(z, lower, upper):
    z = tl.where(z <= lower, lower, z)
    return tl.where(z >= upper, upper, z)


@triton.jit
def penalised_step(z, s, l1_weight, h, OPERATOR: tl.constexpr, PER_ELEMENT: tl.constexpr, WEIGHTED: tl.constexpr):
    """Makes steps 8 to 11: the penalty and proximal decay in the metric s, within the limit, then the bounds. OPERATOR None: l1."""
    if OPERATOR is None:
        p = proximal_step(z, s, h, PER_ELEMENT, l1_weight, WEIGHTED)
    else:
        divisor = divisor_of(s, h, PER_ELEMENT)
        t = tl.broadcast_to(divide(h.gain * s, divisor), z.shape)
        u = t * h.strength
        v = divide(z, divisor)
        p = tl.where(u > 0, OPERATOR(v, t, u, h.strength, h.shape), v)
        if PER_ELEMENT:
            p = limited(z, p, h.largest_shrink)
    return clamp(p, h.lower, h.upper)
