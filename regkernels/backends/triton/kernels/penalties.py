"""Computes the penalties of single elements beyond L1 and L2: the operator, the value and the slope of each, side by side.

Same names and order of lines as in regkernels/reference/penalties.py, where their sources stand, and csrc/penalties.h.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from regkernels.backends.triton.kernels.arithmetic import constant, log_of_one_plus, logarithm, magnitude, with_sign
from regkernels.backends.triton.kernels.shrink import divide, sign, soft_threshold, square_root


@triton.jit
def l0(v, t, u, strength, shape):
    bound = square_root(u + u)
    return tl.where(magnitude(v) <= bound, 0.0, v)


@triton.jit
def l0_value(w, a, b, c, d):
    return (w != 0).to(tl.float64)


@triton.jit
def l_half(v, t, u, strength, shape):
    a = magnitude(v)
    root = square_root(a)
    cube = a * root
    c = divide(u * 0.5, cube)
    q = c * 0.0 + 1.0
    q = tl.where(q == q, q, 1.0)
    for _ in tl.static_range(6):
        q = q - divide((q * q - 1.0) * q + c, 3.0 * (q * q) - 1.0)
    x = a - divide(u * 0.5, root * q)
    return tl.where(cube < u * constant(1.8371173070873836, v), 0.0, with_sign(x, v))


@triton.jit
def l_half_value(w, a, b, c, d):
    return tl.sqrt(tl.abs(w))


@triton.jit
def l_half_slope(w, a, b, c, d):
    x = tl.where(w == 0, 1.0, tl.abs(w))
    return divide(a * sign(w), square_root(x))


@triton.jit
def mcp(v, t, u, strength, gamma):
    convex = t < gamma
    firm = divide(soft_threshold(v, u), tl.where(convex, 1.0 - divide(t, gamma), 1.0))
    inside = tl.where(magnitude(firm) > magnitude(v), v, firm)
    bound = tl.where(convex, gamma * strength, strength * square_root(gamma * t))
    small = tl.where(convex, inside, 0.0)
    return tl.where(magnitude(v) <= bound, small, v)


@triton.jit
def scad(v, t, u, strength, shape):
    a = magnitude(v)
    rest = shape - 1.0 - t
    convex = rest > 0
    left = divide(t * (shape * strength - a), tl.where(convex, rest, 1.0))
    shrunk = soft_threshold(v, tl.where(convex & (left < u), left, u))
    x = magnitude(shrunk)
    better = u * strength * (shape + 1.0) < (x - a) * (x - a) + (u + u) * x
    beyond = (x > strength) | ((a > shape * strength) & better)
    return tl.where((convex == 0) & beyond, v, shrunk)


@triton.jit
def folded_concave_value(w, a, b, c, d):
    x = tl.abs(w)
    m = tl.where(x > d, d, x)
    over = tl.where(m > c, m - c, 0.0)
    return a * m - b * (over * over)


@triton.jit
def folded_concave_slope(w, a, b, c, d):
    x = tl.abs(w)
    over = tl.where(x > c, x - c, 0.0)
    result = sign(w) * (a - b * over)
    return tl.where(x > d, 0.0, result)


@triton.jit
def log_sum(v, t, u, strength, eps):
    a = magnitude(v)
    h = (a + eps) * 0.5
    inside = 1.0 - divide(u, h * h)
    x = a - divide(u, h + h * square_root(tl.where(inside > 0, inside, 0.0)))
    worse = x * (a - x * 0.5) < u * logarithm(1.0 + divide(x, eps))
    zero = (inside < 0) | (x <= 0) | ((u > eps * eps) & worse)
    return tl.where(zero, 0.0, with_sign(x, v))


@triton.jit
def log_sum_value(w, a, b, c, d):
    return log_of_one_plus(tl.abs(w) * a)


@triton.jit
def log_sum_slope(w, a, b, c, d):
    return divide(a * sign(w), tl.abs(w) + c)


@triton.jit
def huber(v, t, u, strength, delta):
    decayed = divide(v, 1.0 + u)
    return tl.where(magnitude(v) <= (1.0 + u) * delta, decayed, v - u * delta * sign(v))


@triton.jit
def huber_value(w, a, b, c, d):
    x = tl.abs(w)
    m = tl.where(x > a, a, x)
    return m * (x - 0.5 * m)


@triton.jit
def huber_slope(w, a, b, c, d):
    low = tl.where(w < -c, -c, w)
    clamped = tl.where(low > c, c, low)
    return a * clamped


class Formulas(NamedTuple):
    """Holds a value and its slope; None where that is 0 everywhere."""

    value: Any  # (w, a, b, c, d) in float64
    slope: Any  # (w, a, b, c, d) in the compute type


OPERATORS = {
    "l0": l0,
    "l_half": l_half,
    "mcp": mcp,
    "scad": scad,
    "log_sum": log_sum,
    "huber": huber,
}
FORMULAS = {
    "l0": Formulas(l0_value, None),
    "l_half": Formulas(l_half_value, l_half_slope),
    "folded_concave": Formulas(folded_concave_value, folded_concave_slope),
    "log_sum": Formulas(log_sum_value, log_sum_slope),
    "huber": Formulas(huber_value, huber_slope),
}
