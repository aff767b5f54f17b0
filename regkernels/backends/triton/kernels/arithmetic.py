"""Holds functions of one element that the penalties are made of.

Same names as in regkernels/reference/elementwise.py and csrc/arithmetic.h.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from regkernels.backends.triton.kernels.shrink import divide

ROOT_OF_HALF = tl.constexpr(0x3FE6A09E667F3BCD)  # its bits
LOG_2 = tl.constexpr(math.log(2.0))
SERIES = tl.constexpr(23)


@triton.jit
def magnitude(x):
    return tl.where(x < 0, -x, x)


@triton.jit
def with_sign(x, v):
    return tl.where(v < 0, -x, x)


@triton.jit
def constant(value: tl.constexpr, x):
    """Returns a number in the type of ``x``, rounded once: a number in an expression is rounded to float32 on the way to float64."""
    return tl.full([], value, x.dtype)


@triton.jit
def logarithm(x):
    if x.dtype == tl.float64:
        pattern = x.to(tl.int64, bitcast=True)
        exponent = ((pattern >> 52) - 1023).to(tl.float64)
        m = ((pattern & ((1 << 52) - 1)) | (1023 << 52)).to(tl.float64, bitcast=True)
    else:
        pattern = x.to(tl.int32, bitcast=True)
        exponent = ((pattern >> 23) - 127).to(tl.float32)
        m = ((pattern & ((1 << 23) - 1)) | (127 << 23)).to(tl.float32, bitcast=True)
    high = m > constant(1.4142135623730951, x)
    e = tl.where(high, exponent + 1.0, exponent)
    m = tl.where(high, m * 0.5, m)
    z = divide(m - 1.0, m + 1.0)
    q = z * z
    total = q * constant(1.0 / 21.0, x) + constant(1.0 / 19.0, x)
    total = total * q + constant(1.0 / 17.0, x)
    total = total * q + constant(1.0 / 15.0, x)
    total = total * q + constant(1.0 / 13.0, x)
    total = total * q + constant(1.0 / 11.0, x)
    total = total * q + constant(1.0 / 9.0, x)
    total = total * q + constant(1.0 / 7.0, x)
    total = total * q + constant(1.0 / 5.0, x)
    total = total * q + constant(1.0 / 3.0, x)
    total = total * q + 1.0
    return e * constant(0.6931471805599453, x) + (z + z) * total


@triton.jit
def log_of_one_plus(y):
    """Computes ``log(1 + y)`` for float64 ``y >= 0``, to a few units in the last place, from ``2 * artanh(f / (2 + f))``.

    The library's is made of fused operations that would be another one on each device, and the interpreter has none.
    """
    bits = (1.0 + y).to(tl.int64, bitcast=True)
    k = (bits - ROOT_OF_HALF) >> 52
    reduced = (bits - (k << 52)).to(tl.float64, bitcast=True) - 1.0
    f = tl.where(k == 0, y, reduced)  # y itself: 1 + y has lost some of its bits
    s = f / (2.0 + f)
    z = s * s
    series = tl.full(y.shape, 1.0 / SERIES, tl.float64)
    for n in tl.static_range(SERIES - 2, 0, -2):
        series = series * z + 1.0 / n
    result = k.to(tl.float64) * LOG_2 + 2.0 * s * series
    return tl.where(y < float("inf"), result, y)
