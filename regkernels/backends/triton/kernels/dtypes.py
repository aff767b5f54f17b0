"""Converts weights when they are loaded and stored: storage type <-> compute type, rounding to nearest even."""

from __future__ import annotations

import triton
import triton.language as tl

# Triton's interpreter truncates float32 to bfloat16 and loses bfloat16's subnormal numbers; devices do neither.
BY_HAND = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def widen(x, TYPE: tl.constexpr):
    if BY_HAND and x.dtype == tl.bfloat16:
        bits = x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        return bits.to(tl.float32, bitcast=True)
    else:
        return x.to(TYPE)


@triton.jit
def scalar(x, TYPE: tl.constexpr):
    """Returns a kernel's number in a type. Not by tl.cast, which takes numbers to float32 on the way where they are Python's, as in
    the interpreter."""
    return tl.full([], x, TYPE)


@triton.jit
def narrow(x, TYPE: tl.constexpr):
    if BY_HAND and tl.bfloat16 == TYPE:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where(x != x, 0x7FC0, rounded)
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(TYPE)
