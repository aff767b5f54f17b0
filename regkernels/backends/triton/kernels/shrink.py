"""The regularisation of one element. Same names and order of lines as regkernels/reference/elementwise.py and csrc/shrink.h."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sign(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, tl.where(x == 0, 0.0, x)))


@triton.jit
def soft_threshold(z, t):
    low = tl.where(z < -t, -t, z)
    clamped = tl.where(low > t, t, low)
    return tl.where(t > 0, z - clamped, z)


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
