"""Specifies the penalties of single elements beyond L1 and L2: the operator, the value and the derivatives of each, side by side.

Each has a strength and most have a shape, their second parameter; `regkernels.reference.family` says what belongs to which.

``operator(v, t, u, strength, shape)`` is the proximal operator, with v where the step has led, t the step of the element and
u = t * strength > 0: the x that minimises ``(x - v)**2 / 2 + t * penalty(x)``, one of them where two are equally good. NaN stays
NaN. There is no transcendental function among them but a logarithm, which is spelt out, so the kernels have the same bits.

The other functions take four numbers that are made of strength and shape, in float64. ``terms(w, n)`` is what elements add to
the value, in float64. ``slope(w, n, root)`` is their gradient in the compute type, with the upstream gradient in the first two
numbers; kernels have the same bits. ``curvature(w, n)`` is the derivative of the slope.

A penalty that is not smooth everywhere is taken as smooth from the side of zero: where the slope has a kink, the curvature is its
limit from smaller magnitudes, as an operator has the derivative of what it holds at the threshold. Where the slope itself jumps,
at zero, both are 0: a weight of zero stays what it is.

Same names and order of lines as in csrc/penalties.h and regkernels/backends/triton/kernels/penalties.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from regkernels.reference.elementwise import logarithm, magnitude, sign, soft_threshold, with_sign
from regkernels.table.root import square_root

Numbers = tuple[Any, Any, Any, Any]
"""Floats; those of terms may be 0-dim tensors, to be differentiated."""
Root = Callable[[Tensor], Tensor]
"""A square root: the correctly rounded one, or one that autograd knows."""


def l0(v: Tensor, t: Tensor, u: Tensor, strength: float, shape: float) -> Tensor:
    """Thresholds ``[x != 0]``. Source: Blumensath and Davies, Iterative hard thresholding (2008)."""
    bound = square_root(u + u)
    return torch.where(magnitude(v) <= bound, torch.zeros_like(v), v)


def l0_terms(w: Tensor, n: Numbers) -> Tensor:
    ones = w.sign().abs()  # which autograd knows, with derivatives 0; torch's sign of NaN is 0
    return torch.where(w == w, ones, torch.ones_like(w))


def l0_slope(w: Tensor, n: Numbers, root: Root) -> Tensor:
    return torch.zeros_like(w)


def no_curvature(w: Tensor, n: Numbers) -> Tensor:
    return torch.zeros_like(w)


def l_half(v: Tensor, t: Tensor, u: Tensor, strength: float, shape: float) -> Tensor:
    """Thresholds ``|x|**(1/2)``: 0 below ``1.5 * u**(2/3)``, else ``a q**2`` with a = |v| and q the largest root of
    ``q**3 - q + c = 0``, ``c = u / (2 a**1.5)``, where the derivative is 0. Six of Newton's steps from 1 are enough for float64.

    Source: Xu et al., L1/2 regularization: a thresholding representation theory and a fast solver (2012), theorem 1, which
    writes the root with cosines.
    """
    a = magnitude(v)
    root = square_root(a)
    cube = a * root
    c = u * 0.5 / cube
    q = torch.ones_like(v)
    for _ in range(6):
        q = q - ((q * q - 1.0) * q + c) / (3.0 * (q * q) - 1.0)
    x = a - u * 0.5 / (root * q)
    return torch.where(cube < u * _like(v, 1.8371173070873836), torch.zeros_like(v), with_sign(x, v))


def l_half_terms(w: Tensor, n: Numbers) -> Tensor:
    x = torch.where(w == 0, torch.ones_like(w), w.abs())  # the root's derivative at 0 is infinite
    return torch.where(w == 0, torch.zeros_like(w), x.sqrt())


def l_half_slope(w: Tensor, n: Numbers, root: Root) -> Tensor:
    a, *_ = n
    x = torch.where(w == 0, torch.ones_like(w), w.abs())
    return (a * sign(w)) / root(x)


def l_half_curvature(w: Tensor, n: Numbers) -> Tensor:
    a, *_ = n
    x = torch.where(w == 0, torch.ones_like(w), w.abs())
    return torch.where(w == 0, torch.zeros_like(w), -0.5 * a / (x * x.sqrt()))


def mcp(v: Tensor, t: Tensor, u: Tensor, strength: float, gamma: float) -> Tensor:
    """Thresholds ``|x| - x**2 / (2 gamma strength)`` up to ``|x| = gamma * strength`` and constant beyond. For a step of gamma or
    more, where the problem is no longer convex, all or nothing. Just below it a rounding error is divided by next to nothing,
    and could make more than v.

    Source: Zhang, Nearly unbiased variable selection under minimax concave penalty (2010).
    """
    gamma_, strength_ = _like(v, gamma), _like(v, strength)
    convex = t < gamma_
    firm = soft_threshold(v, u) / torch.where(convex, 1.0 - t / gamma_, torch.ones_like(t))
    inside = torch.where(magnitude(firm) > magnitude(v), v, firm)
    bound = torch.where(convex, gamma_ * strength_, strength_ * square_root(gamma_ * t))
    small = torch.where(convex, inside, torch.zeros_like(v))
    return torch.where(magnitude(v) <= bound, small, v)


def scad(v: Tensor, t: Tensor, u: Tensor, strength: float, shape: float) -> Tensor:
    """Thresholds |x| up to ``strength``, a parabola up to ``shape * strength``, constant beyond: a soft-threshold by what is left
    of u, nothing where that is negative. For a step of ``shape - 1`` or more the better of v and the minimum up to ``strength``.

    Source: Fan and Li, Variable selection via nonconcave penalized likelihood and its oracle properties (2001).
    """
    shape_, strength_ = _like(v, shape), _like(v, strength)
    a = magnitude(v)
    rest = shape_ - 1.0 - t
    convex = rest > 0
    left = t * (shape_ * strength_ - a) / torch.where(convex, rest, torch.ones_like(rest))
    shrunk = soft_threshold(v, torch.where(convex & (left < u), left, u))
    x = magnitude(shrunk)
    better = u * strength_ * (shape_ + 1.0) < (x - a) * (x - a) + (u + u) * x
    beyond = (x > strength_) | ((a > shape_ * strength_) & better)
    return torch.where(~convex & beyond, v, shrunk)


def folded_concave_terms(w: Tensor, n: Numbers) -> Tensor:
    """Returns the terms of MCP and SCAD: their slope is a, falls by b per unit beyond c, and is nothing from d on."""
    a, b, c, d = n
    x = w.abs()
    m = torch.where(x > d, d, x)
    over = torch.where(m > c, m - c, torch.zeros_like(x))
    return a * m - b * (over * over)


def folded_concave_slope(w: Tensor, n: Numbers, root: Root) -> Tensor:
    a, b, c, d = n
    x = w.abs()
    over = torch.where(x > c, x - c, torch.zeros_like(x))
    result = sign(w) * (a - b * over)
    return torch.where(x > d, torch.zeros_like(w), result)


def folded_concave_curvature(w: Tensor, n: Numbers) -> Tensor:
    _, b, c, d = n
    x = w.abs()
    return torch.where((x > c) & (x <= d), torch.full_like(w, -b), torch.zeros_like(w))


def log_sum(v: Tensor, t: Tensor, u: Tensor, strength: float, eps: float) -> Tensor:
    """Thresholds ``log(1 + |x| / eps)``: the larger point where the derivative is 0, if it is better than 0. Up to ``u = eps**2``
    the problem is convex, and it is. What is taken from v is ``u / (x + eps)``; to subtract that keeps the digits of a small v.

    Source: Candes, Wakin and Boyd, Enhancing sparsity by reweighted l1 minimization (2008); Prater-Bennette, Shen and Tripp,
    The proximity operator of the log-sum penalty (2022).
    """
    eps_ = _like(v, eps)
    a = magnitude(v)
    h = (a + eps_) * 0.5
    inside = 1.0 - u / (h * h)
    x = a - u / (h + h * square_root(torch.where(inside > 0, inside, torch.zeros_like(inside))))
    worse = x * (a - x * 0.5) < u * logarithm(1.0 + x / eps_)
    zero = (inside < 0) | (x <= 0) | ((u > eps_ * eps_) & worse)
    return torch.where(zero, torch.zeros_like(v), with_sign(x, v))


def log_sum_terms(w: Tensor, n: Numbers) -> Tensor:
    inverse_eps, *_ = n
    return (w.abs() * inverse_eps).log1p()


def log_sum_slope(w: Tensor, n: Numbers, root: Root) -> Tensor:
    a, _, c, _ = n
    return (a * sign(w)) / (w.abs() + c)


def log_sum_curvature(w: Tensor, n: Numbers) -> Tensor:
    a, _, c, _ = n
    return torch.where(w == 0, torch.zeros_like(w), -a / (w.abs() + c) ** 2)


def huber(v: Tensor, t: Tensor, u: Tensor, strength: float, delta: float) -> Tensor:
    """Shrinks by ``x**2 / 2`` up to ``|x| = delta``, linear beyond: weight decay whose pull does not grow with large weights.

    Source: Parikh and Boyd, Proximal Algorithms (2014), section 6.5.1, for the Moreau envelope of the absolute value.
    """
    delta_ = _like(v, delta)
    decayed = v / (1.0 + u)
    return torch.where(magnitude(v) <= (1.0 + u) * delta_, decayed, v - u * delta_ * sign(v))


def huber_terms(w: Tensor, n: Numbers) -> Tensor:
    delta, *_ = n
    x = magnitude(
        w
    )  # whose derivative at 0 is not 0, as that of torch.abs is: the second one of w**2 / 2 is 1 there, too
    m = torch.where(x > delta, delta, x)
    return m * (x - 0.5 * m)


def huber_slope(w: Tensor, n: Numbers, root: Root) -> Tensor:
    a, _, c, _ = n
    low = torch.where(w < -c, torch.full_like(w, -c), w)
    clamped = torch.where(low > c, torch.full_like(w, c), low)
    return a * clamped


def huber_curvature(w: Tensor, n: Numbers) -> Tensor:
    a, _, c, _ = n
    return torch.where(w.abs() > c, torch.zeros_like(w), torch.full_like(w, a))


def _like(x: Tensor, value: float) -> Tensor:
    return torch.full_like(x, value)
