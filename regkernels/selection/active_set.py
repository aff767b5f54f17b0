"""Solves small lassos exactly, given their matrix of second derivatives."""

from __future__ import annotations

import numpy
from numpy.typing import NDArray

Array = NDArray[numpy.float64]

_ROUNDING = 1e-13
_RIDGE = 1e-12
"""Curvature that is added to each weight around where it is: with copies of a column the matrix is singular."""


def lasso(matrix: Array, right: Array, thresholds: Array, start: Array, *, positive: bool = False) -> Array:
    """Minimises ``x @ matrix @ x / 2 - right @ x + sum(thresholds * |x|)``.

    Args:
        matrix: positive semidefinite, (k, k).
        right: (k,).
        thresholds: (k,), >= 0. An x with a threshold of 0 is free.
        start: (k,), from where the search begins.
        positive: those that are not free must not become negative.

    Those that are not zero go to their minimum for the signs that they have, but no farther than to where the first of them
    becomes zero, where it stays. At a minimum, the zero whose gradient exceeds its threshold most joins them. The objective shrinks with each step, so
    that no choice of signs comes twice.

    Source: Lawson and Hanson, Solving Least Squares Problems (1974), chapter 23; with signs, Lee et al., Efficient sparse coding (2006).
    """
    x, free = start.copy(), thresholds == 0
    signs = numpy.sign(x)
    ridge = _RIDGE * (matrix.diagonal().max(initial=0.0) or 1.0)
    enough = _ROUNDING * max(numpy.abs(right).max(initial=0.0), thresholds.max(initial=0.0))
    for _ in range(20 * len(x) + 20):
        on = free | (signs != 0)
        gradient = matrix @ x - right
        slope = numpy.where(on, gradient + thresholds * signs, 0.0)
        if numpy.abs(slope).max(initial=0.0) <= enough:
            excess = numpy.where(on, 0.0, (-gradient if positive else numpy.abs(gradient)) - thresholds)
            joins = int(excess.argmax())
            if excess[joins] <= enough:
                break
            signs[joins] = -numpy.sign(gradient[joins])
            on[joins] = True
            slope[joins] = gradient[joins] + thresholds[joins] * signs[joins]
        chosen = on.nonzero()[0]
        bent = matrix[numpy.ix_(chosen, chosen)]
        bent[numpy.diag_indices_from(bent)] += ridge
        move = numpy.zeros_like(x)
        move[chosen] = numpy.linalg.solve(bent, -slope[chosen])
        crossing = ~free & (signs != 0) & ((x + move) * signs <= 0)
        if not crossing.any():
            x = x + move
            continue
        lengths = numpy.full_like(x, numpy.inf)
        lengths[crossing] = -x[crossing] / move[crossing]
        first = int(lengths.argmin())
        x = x + lengths[first] * move
        x[first] = signs[first] = 0.0
    return x
