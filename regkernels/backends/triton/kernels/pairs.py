"""Sums as pairs of float32, a sum and what its roundings left out: where float64 runs at a 64th of float32's rate.

Right to a few 1e-11 as long as nothing overflows and the squares are not all tiny. Whether that is so is known from the sums of a
chunk, which are formed anew in float64 where it is not.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

SMALLEST = tl.constexpr(2.0**-98)
"""Of a chunk's sum of squares: what 8192 of them lose below the smallest float32, 2^-149, is 2^-34 of it at most."""

SPLIT = tl.constexpr(-(1 << 12))
"""Bits of a float32 that leave 12 of its significand, whose square is exact."""


class Pairs(NamedTuple):
    """Holds, per vector of a block, what `regkernels.backends.triton.kernels.sums.Lanes` does; ``*_rest`` belongs to the sum."""

    absolute: Any
    absolute_rest: Any
    square: Any
    square_rest: Any
    nonzeros: Any
    gradient: Any
    gradient_rest: Any
    magnitude: Any  # of gradients, added up as it comes: 0 only where all are


@triton.jit
def no_pairs(BLOCK: tl.constexpr, VECTOR: tl.constexpr):
    zeros = tl.zeros([BLOCK // VECTOR], tl.float32)
    return Pairs(zeros, zeros, zeros, zeros, tl.zeros([BLOCK // VECTOR], tl.int32), zeros, zeros, zeros)


@triton.jit
def two_sum(a, b):
    """Returns the sum and exactly what it lacks (Knuth, The Art of Computer Programming, volume 2, 4.2.2)."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


@triton.jit
def neighbours(x):
    """Returns the even elements of a block, and the odd ones."""
    return tl.split(tl.reshape(x, [x.shape[0] // 2, 2]))


@triton.constexpr_function
def halvings(vector):
    return vector.bit_length() - 1


@triton.jit
def add_vectors(total, total_rest, x, rest, VECTOR: tl.constexpr):
    """Adds elements, which one thread holds side by side, with their rests; None: they have none."""
    for _ in tl.static_range(halvings(VECTOR)):
        even, odd = neighbours(x)
        x, lacking = two_sum(even, odd)
        if rest is not None:
            even, odd = neighbours(rest)
            lacking += even + odd
        rest = lacking
    total, lacking = two_sum(total, x)
    return total, total_rest + (rest + lacking)


@triton.jit
def square_of(x, VECTOR: tl.constexpr):
    """Returns a square in two parts."""
    if VECTOR > 4:  # 16-bit numbers have at most 11 significant bits, so their squares are exact
        return x * x, None
    else:
        high = (x.to(tl.int32, bitcast=True) & SPLIT).to(tl.float32, bitcast=True)
        return high * high, (x + high) * (x - high)


@triton.jit
def add_weights(lanes, w, VECTOR: tl.constexpr):
    x = tl.abs(w)
    absolute, absolute_rest = add_vectors(lanes.absolute, lanes.absolute_rest, x, None, VECTOR)
    high, low = square_of(x, VECTOR)
    square, square_rest = add_vectors(lanes.square, lanes.square_rest, high, low, VECTOR)
    nonzeros = lanes.nonzeros + tl.sum(tl.reshape((x != 0).to(tl.int32), [x.shape[0] // VECTOR, VECTOR]), axis=1)
    return Pairs(
        absolute,
        absolute_rest,
        square,
        square_rest,
        nonzeros,
        lanes.gradient,
        lanes.gradient_rest,
        lanes.magnitude,
    )


@triton.jit
def add_gradients(lanes, g, VECTOR: tl.constexpr):
    x = tl.abs(g)
    high, low = square_of(x, VECTOR)
    gradient, gradient_rest = add_vectors(lanes.gradient, lanes.gradient_rest, high, low, VECTOR)
    magnitude = lanes.magnitude + tl.sum(tl.reshape(x, [x.shape[0] // VECTOR, VECTOR]), axis=1)
    return Pairs(
        lanes.absolute,
        lanes.absolute_rest,
        lanes.square,
        lanes.square_rest,
        lanes.nonzeros,
        gradient,
        gradient_rest,
        magnitude,
    )


@triton.jit
def add_lanes(total, rest):
    return tl.sum(total.to(tl.float64) + rest.to(tl.float64))


@triton.jit
def holds(total):
    """Tells whether a sum of magnitudes is right."""
    return total < float("inf")


@triton.jit
def holds_of_squares(total, magnitude):
    """Tells whether a sum of squares is right. ``magnitude``: the sum of what is squared, or anything else that is 0 where all is."""
    return (total < float("inf")) & ((total >= SMALLEST) | (magnitude == 0))
