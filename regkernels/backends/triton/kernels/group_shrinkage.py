"""Computes what the step of groups makes of them. Same names and order of lines as in regkernels/reference/groups.py and
csrc/group_blocks.h."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from regkernels.backends.triton.kernels.dtypes import BY_HAND
from regkernels.backends.triton.kernels.penalised import clamp
from regkernels.backends.triton.kernels.shrink import divide, divisor_of, soft_threshold, within


@triton.jit
def thresholded(z, t, h):
    """Does what is done to elements, bounds and soft-threshold: what that takes, and what it leaves."""
    z = clamp(z, h.lower, h.upper)
    return tl.where(t > 0, within(z, t), 0.0), soft_threshold(z, t)


class Squares(NamedTuple):
    """Holds sums over groups, in float64: with e what the soft-threshold has taken of z, and x what it has left."""

    left: Any  # of x * x
    taken: Any  # of e * e
    both: Any  # of e * x


@triton.jit
def products(e, x, mask):
    """Computes the terms of `Squares`. Where nothing is taken, nothing of an infinite x is, either."""
    e = tl.where(mask, e, 0.0).to(tl.float64)
    x = tl.where(mask, x, 0.0).to(tl.float64)
    return Squares(x * x, e * e, tl.where(e == 0, 0.0, e * x))


@triton.jit
def add_squares(a, b):
    return Squares(a.left + b.left, a.taken + b.taken, a.both + b.both)


@triton.jit
def _add_three(a, b, c, x, y, z):
    return a + x, b + y, c + z


@triton.jit
def sum_squares(squares):
    """Adds up the rows of a tile, (groups,) each; all three at a time, as between warps each addition is waited for."""
    if BY_HAND:  # the interpreter would add element by element
        return Squares(tl.sum(squares.left, axis=0), tl.sum(squares.taken, axis=0), tl.sum(squares.both, axis=0))
    else:
        left, taken, both = tl.reduce((squares.left, squares.taken, squares.both), 0, _add_three)
        return Squares(left, taken, both)


@triton.jit
def norm_of(a, b, squares):
    """Computes the norm of ``a * e + b * x``."""
    p, q = a.to(tl.float64), b.to(tl.float64)
    return tl.sqrt(p * p * squares.taken + 2.0 * p * q * squares.both + q * q * squares.left).to(b.dtype)


@triton.jit
def shrinkage(squares, shared, states, strength, largest_shrink, h, RULE: tl.constexpr, PER_ELEMENT: tl.constexpr):
    """Computes what the step of groups makes of them: ``(kept * e + factor * x) / divisor``."""
    n = tl.sqrt(squares.left).to(shared.dtype)
    _, s, _ = RULE(n, shared, states, h)
    limit = h.gain * s * strength
    factor = tl.where(limit > 0, tl.where(n <= limit, 0.0, 1.0 - divide(limit, n)), 1.0)
    divisor = divisor_of(s, h, PER_ELEMENT) + tl.zeros_like(n)
    q = 1.0 - divide(factor, divisor)
    d = norm_of(tl.full([], 1.0, q.dtype), q, squares)
    exceeds = d > largest_shrink
    part = divide(largest_shrink, d)
    kept = tl.where(exceeds & (squares.taken > 0), 1.0 - part, 0.0)
    factor = tl.where(exceeds, 1.0 - part * q, factor)
    divisor = tl.where(exceeds, 1.0, divisor)
    norm = tl.where(exceeds, norm_of(1.0 - part, factor, squares), tl.where(limit > 0, n - limit, n))
    too_large = divide(norm, divisor) > h.max_norm
    divisor = tl.where(too_large, divide(norm, h.max_norm), divisor)
    divisor = tl.where(h.unit_norm != 0, tl.where(norm > 0, norm, divisor), divisor)
    return kept, factor, divisor


@triton.jit
def shrink(e, x, kept, factor, divisor):
    """As two formulas would, of which one quotient is taken."""
    shrunk = tl.where(kept == 0, x * factor, kept * e + factor * x)
    return tl.where((kept == 0) & (factor == 0), 0.0, divide(shrunk, divisor))
