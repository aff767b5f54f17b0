"""Stores numbers in fewer bits than they are computed in: rounding them by chance, or keeping what rounding takes away.

Same names and arithmetic as regkernels/reference/rounding.py and csrc/rounding.h.
"""

from __future__ import annotations

import triton
import triton.language as tl

from regkernels.backends.triton.kernels.dtypes import narrow, widen


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    for _ in tl.static_range(10):
        # As products of 64 bits they lose on the way through LLVM that the upper halves of their factors are 0.
        high0, low0 = tl.umulhi(c0, 0xD2511F53), c0 * 0xD2511F53
        high1, low1 = tl.umulhi(c2, 0xCD9E8D57), c2 * 0xCD9E8D57
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 = k0 + 0x9E3779B9
        k1 = k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def random_bits(first, seed, stream, step, SLOT: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr):
    """Draws 16 bits for each element of a block that begins at the place ``first`` of its parameter, a multiple of 8.

    Eight elements share a counter. It is computed once for the VECTOR elements, 8 or 4, that a thread holds side by side.
    """
    place = first + tl.arange(0, BLOCK // VECTOR) * VECTOR
    counter = place >> 3
    c0 = counter.to(tl.uint32)
    c1 = (counter >> 32).to(tl.uint32)
    zero = c0 ^ c0
    c0, c1, c2, c3 = philox(c0, c1, zero + step, zero + SLOT, seed, stream)
    if VECTOR == 8:
        words = tl.join(tl.join(c0, c2), tl.join(c1, c3))
    else:
        tl.static_assert(VECTOR == 4)
        upper = (place & 4) != 0
        words = tl.join(tl.where(upper, c2, c0), tl.where(upper, c3, c1))
    return tl.reshape(tl.join(words & 0xFFFF, words >> 16), [BLOCK])


@triton.jit
def random_at(place, seed, stream, step, SLOT: tl.constexpr):
    """Draws the same bits for elements at any places, int64, of their parameter. Each computes its counter, eight times the work."""
    counter = place >> 3
    c0 = counter.to(tl.uint32)
    c1 = (counter >> 32).to(tl.uint32)
    zero = c0 ^ c0
    c0, c1, c2, c3 = philox(c0, c1, zero + step, zero + SLOT, seed, stream)
    words = tl.where((place & 4) != 0, tl.where((place & 2) != 0, c3, c2), tl.where((place & 2) != 0, c1, c0))
    return tl.where((place & 1) != 0, words >> 16, words & 0xFFFF)


@triton.jit
def random_of(
    first, seed, stream, step, SLOT: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr, SHIFTED: tl.constexpr
):
    """Draws the `random_bits` of a block that, where SHIFTED, may begin at any place."""
    if SHIFTED:
        return random_at(first + tl.arange(0, BLOCK), seed, stream, step, SLOT)
    else:
        return random_bits(first, seed, stream, step, SLOT, BLOCK, VECTOR)


@triton.jit
def round_stochastically(x, random, TYPE: tl.constexpr):
    bits = x.to(tl.uint32, bitcast=True)
    if tl.bfloat16 == TYPE:
        rounded = tl.where(x != x, 0x7FC0, (bits + random) >> 16)
    else:
        sign = (bits >> 16) & 0x8000
        magnitude = bits & 0x7FFFFFFF
        normal = (magnitude - (112 << 23) + (random >> 3)) >> 13
        small = tl.where(magnitude < 0x38800000, magnitude, 0)
        units = small.to(tl.float32, bitcast=True) * 1099511627776.0  # 2^16 are the smallest subnormal number
        subnormal = (units.to(tl.int32).to(tl.uint32) + random) >> 16
        finite = tl.where(magnitude < 0x38800000, subnormal, normal)
        special = tl.where(magnitude > 0x7F800000, 0x7E00, 0x7C00)
        rounded = sign | tl.where(magnitude >= 0x47800000, special, finite).to(tl.uint32)
    return rounded.to(tl.uint16).to(TYPE, bitcast=True)


@triton.jit
def split(x):
    bits = x.to(tl.uint32, bitcast=True)
    nearest = (bits + 0x8000) >> 16
    high = tl.where(x != x, 0x7FC0, nearest)
    low = tl.where(x != x, 0, bits - (nearest << 16))
    return high.to(tl.uint16).to(tl.bfloat16, bitcast=True), low.to(tl.uint16).to(tl.int16, bitcast=True)


@triton.jit
def join(weight, remainder):
    """Joins what `split` made of a number. A zero has no negative remainder, and an infinity no positive one. Such a one is found
    where the weight was set by hand, and would make it a NaN."""
    high = weight.to(tl.uint16, bitcast=True).to(tl.uint32)
    magnitude = high & 0x7FFF
    low = remainder.to(tl.int32)
    stale = ((magnitude == 0) & (low < 0)) | ((magnitude == 0x7F80) & (low > 0))
    low = tl.where(stale, 0, low)
    return ((high << 16) + low.to(tl.uint32, bitcast=True)).to(tl.float32, bitcast=True)


@triton.jit
def prefer_weight(weight, master, TYPE: tl.constexpr):
    """Takes the weight for a master copy that does not round to it: somebody has set the weight, and that counts."""
    same = narrow(master, TYPE).to(tl.uint16, bitcast=True) == weight.to(tl.uint16, bitcast=True)
    return tl.where(same, master, widen(weight, tl.float32))
