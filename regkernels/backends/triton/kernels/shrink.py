"""Regularises one element. Same names and order of lines as regkernels/reference/elementwise.py and csrc/shrink.h."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sign(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, tl.where(x == 0, 0.0, x)))


@triton.jit
def opposed(move, w):
    """Tells whether a move works against the sign of its weight, which decay would do, too."""
    return ((move > 0) & (w < 0)) | ((move < 0) & (w > 0))


@triton.jit
def within(x, bound):
    """Brings ``x`` between -bound and bound; NaN stays."""
    low = tl.where(x < -bound, -bound, x)
    return tl.where(low > bound, bound, low)


@triton.jit
def at_most(x, bound):
    return tl.where(x > bound, bound, x)


@triton.jit
def soft_threshold(z, t):
    return tl.where(t > 0, z - within(z, t), z)


# Triton's `/` and `tl.sqrt` are approximations in float32; in float64 they are correctly rounded.


@triton.jit
def divide(top, bottom):
    if bottom.dtype == tl.float32:
        return tl.div_rn(top, bottom)
    else:
        return top / bottom


@triton.jit
def square_root(x):
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)
    else:
        return tl.sqrt(x)


@triton.jit
def inverse(x):
    return divide(tl.full([], 1.0, x.dtype), x)


@triton.jit
def limited(z, p, largest):
    """Returns what a proximal step from ``z`` to ``p`` makes where it may take no more than ``largest``."""
    taken = z - p
    return tl.where(tl.abs(taken) > largest, z - within(taken, largest), p)


@triton.jit
def threshold_of(s, h, PER_ELEMENT: tl.constexpr):
    t = h.threshold
    if PER_ELEMENT:
        t = tl.where(h.threshold_per_step != 0, h.threshold_per_step * s, t)
    return t


@triton.jit
def divides(h):
    return (h.shrink_divisor != 1.0) | (h.shrink_per_step != 0)


@triton.jit
def divisor_of(s, h, PER_ELEMENT: tl.constexpr):
    divisor = h.shrink_divisor
    if PER_ELEMENT:
        divisor = tl.where(h.shrink_per_step != 0, h.shrink_per_step * s + 1.0, divisor)
    return divisor


@triton.jit
def proximal_step(z, s, h, PER_ELEMENT: tl.constexpr, l1_weight=None, WEIGHTED: tl.constexpr = False):
    """Makes steps 8 to 10 of the specification: soft-threshold and proximal decay in the metric s, within the limit. A
    soft-threshold takes no more than its threshold: that it is limited suffices, in one operation."""
    t = threshold_of(s, h, PER_ELEMENT)
    if WEIGHTED:
        t = t * l1_weight
    if PER_ELEMENT:
        t = at_most(t, h.largest_shrink)
    p = soft_threshold(z, t)
    if divides(h):  # a division costs as much as a rule
        p = divide(p, divisor_of(s, h, PER_ELEMENT))
        if PER_ELEMENT:
            p = limited(z, p, h.largest_shrink)
    return p
