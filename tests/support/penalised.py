"""Penalties beyond l1 as their definitions say, apart from the package: values, slopes, minimisers by brute force.

Everything is float64 and element by element; ``strength`` and ``shape`` are the penalty's two parameters.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regkernels import prox
from regkernels.reference.family import FAMILY

Setting = tuple[float, float, float]


class Penalty(NamedTuple):
    """f and f' by element, of any sign; f' is asked for where x is not 0. Kinks and thresholds are magnitudes."""

    value: Callable[[Tensor, Any, float], Tensor]
    """Of a strength that may be a tensor."""
    slope: Callable[[Tensor, float, float], Tensor]
    at_zero: Callable[[Any, float], tuple[Any, Any]]
    """The limits of f' from both sides of 0; infinite where f jumps."""
    thresholds: Callable[[float, float, float], list[float]]
    """Where the operator takes another branch, for strength, shape and step."""
    settings: Sequence[Setting] = ((0.5, 1.0, 1.0), (0.01, 1.0, 0.3), (7.0, 1.0, 2.0), (1e-8, 1.0, 1e-3))
    """Strengths, shapes and steps: below, at and above where an operator ceases to be continuous; several where it is nearly so."""
    kinks: Callable[[float, float], tuple[float, ...]] = lambda lam, shape: (0.0,)
    """Where f is not twice differentiable."""
    shape: float = 1.0  # the default of the second parameter
    argument: str | None = None  # what `regkernels.prox` calls it
    convex: bool = False
    even: bool = True

    def of(self, x: Tensor, strength: float, shape: float) -> Tensor:
        return self.value(x, strength, shape)


def even(
    value: Callable[[Tensor, Any, float], Tensor],
    slope: Callable[[Tensor, float, float], Tensor],
    at_zero: Callable[[Any, float], Any],
    thresholds: Callable[[float, float, float], list[float]],
    **more: Any,
) -> Penalty:
    """Of f(x) for x >= 0, f'(x) for x > 0 and its limit at 0."""
    return Penalty(
        lambda x, lam, shape: value(x.abs(), lam, shape),
        lambda x, lam, shape: slope(x.abs(), lam, shape) * x.sign(),
        lambda lam, shape: (-at_zero(lam, shape), at_zero(lam, shape)),
        thresholds,
        **more,
    )


def _mcp(x: Tensor, lam: Any, gamma: float) -> Tensor:
    return torch.where(x <= gamma * lam, lam * x - x**2 / (2 * gamma), gamma * lam**2 / 2)


def _scad(x: Tensor, lam: Any, a: float) -> Tensor:
    parabola = (2 * a * lam * x - x**2 - lam**2) / (2 * (a - 1))
    return torch.where(x <= lam, lam * x, torch.where(x <= a * lam, parabola, lam**2 * (a + 1) / 2))


def _huber(x: Tensor, lam: Any, delta: float) -> Tensor:
    return lam * torch.where(x <= delta, x**2 / 2, delta * (x - delta / 2))


PENALTIES = {
    "l1": even(
        lambda x, lam, _: lam * x,
        lambda x, lam, _: lam * torch.ones_like(x),
        lambda lam, _: lam,
        lambda lam, _, t: [t * lam],
        settings=[(0.3, 1.0, 1.0), (2.0, 1.0, 0.01)],
        convex=True,
    ),
    "l0": even(
        lambda x, lam, _: lam * (x != 0).double() + 0 * x,
        lambda x, lam, _: 0 * x,
        lambda lam, _: math.inf,
        lambda lam, _, t: [math.sqrt(2 * t * lam)],
    ),
    "l_half": even(
        lambda x, lam, _: lam * x.sqrt(),
        lambda x, lam, _: lam / (2 * x.sqrt()),
        lambda lam, _: math.inf,
        lambda lam, _, t: [1.5 * (t * lam) ** (2 / 3)],
    ),
    "mcp": even(
        _mcp,
        lambda x, lam, gamma: (lam - x / gamma).clamp(min=0),
        lambda lam, _: lam,
        lambda lam, gamma, t: [t * lam, gamma * lam, lam * math.sqrt(gamma * t)],
        settings=[
            (lam, gamma, t)
            for lam in (0.5, 1e-3)
            for gamma, t in (
                *itertools.product([3.0], [1e-4, 0.3, 1.0, 2.9, 2.999, 3.0, 3.001, 10.0]),
                (1.2, 1.0),
                (0.5, 0.1),
                (0.5, 0.9),
                (40.0, 1.0),
            )
        ],
        kinks=lambda lam, gamma: (0.0, gamma * lam),
        shape=3.0,
        argument="gamma",
    ),
    "scad": even(
        _scad,
        lambda x, lam, a: torch.where(x <= lam, lam * torch.ones_like(x), ((a * lam - x) / (a - 1)).clamp(min=0)),
        lambda lam, _: lam,
        lambda lam, a, t: [
            *(t * lam, lam * (1 + t), lam, a * lam, lam * (1 + a) / 2 + t * lam / 2),
            *(lam + lam * math.sqrt(t * (a - 1)), lam * math.sqrt(t * (a + 1))),
        ],
        settings=[
            (lam, a, t)
            for lam in (0.5, 1e-3)
            for a, t in (
                *itertools.product([3.7], [1e-4, 0.3, 1.0, 2.6, 2.699, 2.7, 2.701, 4.7, 4.8, 20.0]),
                (2.0, 0.5),
                (1.2, 0.1),
                (1.2, 3.0),
                (40.0, 1.0),
            )
        ],
        kinks=lambda lam, a: (0.0, lam, a * lam),
        shape=3.7,
        argument="a",
    ),
    "log_sum": even(
        lambda x, lam, eps: lam * (x / eps).log1p(),
        lambda x, lam, eps: lam / (x + eps),
        lambda lam, eps: lam / eps,
        lambda lam, eps, t: [t * lam / eps, abs(2 * math.sqrt(t * lam) - eps), eps],
        settings=[
            (lam, eps, t)
            for eps in (1.0, 0.1)
            for lam, t in (
                (0.5 * eps**2, 0.3),
                (eps**2, 0.999),
                (eps**2, 1.0),
                (eps**2, 1.001),
                (eps**2, 1.3),
                (3 * eps**2, 4.0),
                (50 * eps**2, 1.0),
                (1e-5 * eps**2, 0.1),
            )
        ],
        argument="eps",
    ),
    "huber": even(
        _huber,
        lambda x, lam, delta: lam * x.clamp(max=delta),
        lambda lam, _: 0.0 * lam,
        lambda lam, delta, t: [(1 + t * lam) * delta, delta],
        settings=[(0.5, 1.0, 1.0), (3.0, 0.2, 0.3), (1e-3, 10.0, 1.0), (20.0, 0.05, 5.0)],
        kinks=lambda lam, delta: (delta,),
        argument="delta",
        convex=True,
    ),
}
KEYS = {key: of.shape_key for key, of in FAMILY.items() if of.shape_key}
"""What a param group calls the second parameter."""


def options(name: str, strength: float, shape: float) -> dict[str, Any]:
    """Keys of a param group."""
    return {name: strength, **({KEYS[name]: shape} if name in KEYS else {})}


def operator(name: str, x: Tensor, strength: float, shape: float, step: float) -> Tensor:
    """The one of `regkernels.prox`."""
    if name == "l1":
        return prox.elastic_net(x, strength, 0.0, step=step)
    argument = PENALTIES[name].argument
    return getattr(prox, name)(x, strength, step=step, **({argument: shape} if argument else {}))


Objective = Callable[[Tensor], Tensor]


def objective(name: str, v: Tensor, strength: float, shape: float, step: float, decay: float = 0.0) -> Objective:
    """``(x - v)**2 / 2 + step * (f(x) + decay / 2 * x**2)`` of (candidates, elements)."""
    return lambda x: (x - v) ** 2 / 2 + step * (PENALTIES[name].of(x, strength, shape) + decay / 2 * x**2)


def minimise(values: Objective, low: Tensor, high: Tensor, zooms: int = 9, points: int = 801) -> Tensor:
    """The best points of a grid between ``low`` and ``high``, one per element, and of finer grids around them; and 0, where it
    is between the two."""
    best = torch.where((low <= 0) & (high >= 0), torch.zeros_like(low), low)
    left, right, count = low, high, points
    for _ in range(zooms):
        grid = left + (right - left) * torch.linspace(0, 1, count, dtype=torch.float64)[:, None]
        candidates = torch.cat([grid, best[None]])
        found = values(candidates)
        best = candidates.gather(0, found.argmin(0)[None])[0]
        width = (right - left) / (count - 1)
        left, right, count = torch.maximum(best - width, low), torch.minimum(best + width, high), 41
    return best


def thresholds(name: str, strength: float, shape: float, step: float) -> list[float]:
    """Where the operator takes another branch."""
    return PENALTIES[name].thresholds(strength, shape, step)


def subdiff_distance(
    name: str,
    w: Tensor,
    gradient: Tensor,
    strength: float | Tensor,
    shape: float,
    low: float = -math.inf,
    high: float = math.inf,
) -> float:
    """How far ``-gradient`` is from the subdifferential of f at w between bounds, at most: 0 at a stationary point of loss + f.

    For a penalty that jumps or is infinitely steep at 0, every weight of 0 is stationary.
    """
    penalty = PENALTIES[name]
    x = torch.where(w == 0, torch.ones_like(w), w)
    slope = penalty.slope(x, strength, shape)
    below, above = (limit * torch.ones_like(w) for limit in penalty.at_zero(strength, shape))
    smallest = gradient + torch.where(w == 0, below, slope)
    largest = gradient + torch.where(w == 0, above, slope)
    smallest[w <= low] = -math.inf  # at a bound, what presses against it
    largest[w >= high] = math.inf
    return torch.maximum(smallest, -largest).clamp(min=0).max().item()
