"""Holds arithmetic that NumPy lacks or does otherwise, on arrays with an element per thread. Generated code calls it."""

from __future__ import annotations

from typing import Any

import numpy
from numpy import where

from tests.triton.ptx.machine.types import f2, f4, f8, i4, i8, u2, u4, u8

Array = Any
"""An array, or the scalar that a constant is."""


# --- floating point ---


def bits32(x: Array) -> Array:
    """Returns the bits of float32 results, of which each NaN is the one that devices make."""
    nan = x != x
    return where(nan, u4(0x7FFFFFFF), x.view(u4)) if nan.any() else x.view(u4)


def bits64(x: Array) -> Array:
    """Returns the bits of float64 results; one NaN stands for all, as PTX promises none, and threads that compute one may differ in it."""
    nan = x != x
    return where(nan, u8(0xFFF8000000000000), x.view(u8)) if nan.any() else x.view(u8)


def bits16(x: Array) -> Array:
    return where(x != x, u2(0x7FFF), x.view(u2))


def brain(bits: Array) -> Array:
    """Returns the values, in float32, of bfloat16 bits."""
    return (bits.astype(u4) << u4(16)).view(f4)


def brain_bits(x: Array) -> Array:
    """Rounds float32 to the nearest bfloat16, ties to even, and returns its bits."""
    bits = x.view(u4)
    rounded = (bits + u4(0x7FFF) + ((bits >> u4(16)) & u4(1))) >> u4(16)
    return where(x != x, u4(0x7FFF), rounded).astype(u2)


def half_bits(x: Array) -> Array:
    return bits16(x.astype(f2))


def pair(low: Array, high: Array) -> Array:
    return low.astype(u4) | (high.astype(u4) << u4(16))


def smaller(a: Array, b: Array, propagates: bool) -> Array:
    """Returns the minimum, of which -0.0 is less than 0.0; with a NaN and a number, the number unless a NaN ``propagates``."""
    least = where((a < b) | ((a == b) & numpy.signbit(a)) | (b != b), a, b)
    return where((a != a) | (b != b), a.dtype.type(numpy.nan), least) if propagates else least


def larger(a: Array, b: Array, propagates: bool) -> Array:
    return -smaller(-a, -b, propagates)


def fused(a: Array, b: Array, c: Array) -> Array:
    """Computes a * b + c in float32, rounded once: the product is exact in float64, and the sum is rounded to odd there."""
    product = a.astype(f8) * b.astype(f8)
    total = product + c.astype(f8)
    part = total - product
    error = (product - (total - part)) + (c.astype(f8) - part)
    pattern = total.view(i8)
    even = (error != 0) & numpy.isfinite(total) & (pattern & 1 == 0)
    outwards = (error > 0) == (total > 0)
    return where(even, pattern + where(outwards, 1, -1), pattern).view(f8).astype(f4)


_ROUNDINGS = {"rzi": numpy.trunc, "rni": numpy.rint, "rmi": numpy.floor, "rpi": numpy.ceil}


def to_integer(x: Array, kind: Any, rounding: str) -> Array:
    """Converts as devices do: what is too large becomes the largest, NaN becomes 0."""
    whole = _ROUNDINGS[rounding](x.astype(f8))
    limits = numpy.iinfo(kind)
    low, high = whole <= float(limits.min), whole >= float(limits.max)
    inside = where(low | high | (x != x), 0.0, whole).astype(kind)
    return where(low, kind(limits.min), where(high, kind(limits.max), inside))


# --- integers ---


def quotient(a: Array, b: Array) -> Array:
    """Divides integers towards zero; by zero all bits are set."""
    a, b = numpy.broadcast_arrays(a, b)
    safe = where(b == 0, a.dtype.type(1), b)
    found = a // safe
    if a.dtype.kind == "i":
        found = found + ((found * safe != a) & ((a < 0) != (safe < 0))).astype(a.dtype)
    return where(b == 0, ~a.dtype.type(0), found)


def remainder(a: Array, b: Array) -> Array:
    return where(b == 0, a, a - quotient(a, b) * b)


def high_product(a: Array, b: Array) -> Array:
    """Returns the upper half of the product of unsigned or signed integers of 32 or 64 bits."""
    if a.dtype.itemsize == 4:
        wide = i8 if a.dtype.kind == "i" else u8
        return ((a.astype(wide) * b.astype(wide)) >> wide(32)).astype(a.dtype)
    x, y, half, low = a.view(u8), b.view(u8), u8(32), u8(0xFFFFFFFF)
    middle = (x >> half) * (y & low) + (((x & low) * (y & low)) >> half)
    high = (x >> half) * (y >> half) + (middle >> half) + (((x & low) * (y >> half) + (middle & low)) >> half)
    if a.dtype.kind == "u":
        return high
    return high.view(i8) - where(a < 0, b, i8(0)) - where(b < 0, a, i8(0))


def left(a: Array, count: Array) -> Array:
    most = a.dtype.itemsize * 8
    return where(count >= most, a.dtype.type(0), a << numpy.minimum(count, most - 1).astype(a.dtype))


def right(a: Array, count: Array) -> Array:
    most = a.dtype.itemsize * 8
    shifted = a >> numpy.minimum(count, most - 1).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else where(count >= most, a.dtype.type(0), shifted)


def funnel(low: Array, high: Array, count: Array, to_left: bool, wraps: bool) -> Array:
    count = (count & u4(31) if wraps else numpy.minimum(count, u4(32))).astype(u8)
    both = low.astype(u8) | (high.astype(u8) << u8(32))
    return ((both << count) >> u8(32) if to_left else both >> count).astype(u4)


def ones(a: Array) -> Array:
    return numpy.bitwise_count(a).astype(u4)


def leading_zeros(a: Array) -> Array:
    size = a.dtype.itemsize * 8
    for step in (1, 2, 4, 8, 16, 32)[: size.bit_length() - 1]:
        a = a | (a >> a.dtype.type(step))
    return (size - numpy.bitwise_count(a).astype(i4)).view(u4)


def field(a: Array, begin: Array, length: Array) -> Array:
    """Takes a field of bits out of unsigned integers."""
    mask = left(~a.dtype.type(0) + a * a.dtype.type(0), length & u4(255))
    return right(a, begin & u4(255)) & ~mask


def signed_field(a: Array, begin: Array, length: Array) -> Array:
    """Takes a field of bits out of signed integers; its upper bit, or the integer's where it ends before, fills the rest."""
    size = u4(8 * a.dtype.itemsize)
    rest = size - numpy.minimum(length & u4(255), size)
    return right(left(right(a, begin & u4(255)), rest), rest)


def with_field(inserted: Array, a: Array, begin: Array, length: Array) -> Array:
    begin, length = begin & u4(255), length & u4(255)
    mask = left(~left(a | ~a.dtype.type(0), length), begin)
    return (left(inserted, begin) & mask) | (a & ~mask)


def permuted(a: Array, b: Array, selector: Array) -> Array:
    """Picks four of the eight bytes of two words; a selector's upper bit spreads the sign of its byte."""
    both = a.astype(u8) | (b.astype(u8) << u8(32))
    result = u4(0)
    for place in range(4):
        choice = (selector >> u4(4 * place)) & u4(15)
        byte = ((both >> ((choice & u4(7)).astype(u8) * u8(8))) & u8(255)).astype(u4)
        sign = where(byte & u4(128) != 0, u4(255), u4(0))
        result = result | (where(choice & u4(8) != 0, sign, byte) << u4(8 * place))
    return result


def by_table(a: Array, b: Array, c: Array, table: int) -> Array:
    """Combines three words bit by bit; bit 4 * a + 2 * b + c of ``table`` is what comes out."""
    result = u4(0)
    for row in range(8):
        if table >> row & 1:
            result = result | ((a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c))
    return result
