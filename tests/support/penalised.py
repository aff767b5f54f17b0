"""Penalties beyond l1 as their definitions say, apart from the package: values, slopes, minimisers by brute force.

Everything is float64 and element by element; ``strength`` and ``shape`` are the penalty's two parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regkernels import prox


class Penalty(NamedTuple):
    """f(x) for x >= 0, and f'(x) for x > 0; at 0 its limit, ``inf`` where f jumps."""

    value: Callable[[Tensor, float, float], Tensor]
    slope: Callable[[Tensor, float, float], Tensor]
    at_zero: Callable[[float, float], float]
    shape: float = 1.0  # the default of the second parameter
    argument: str | None = None  # what `regkernels.prox` calls it
    convex: bool = False

    def of(self, x: Tensor, strength: float, shape: float) -> Tensor:
        return self.value(x.abs(), strength, shape)


def _mcp(x: Tensor, lam: float, gamma: float) -> Tensor:
    return torch.where(x <= gamma * lam, lam * x - x**2 / (2 * gamma), torch.full_like(x, gamma * lam**2 / 2))


def _scad(x: Tensor, lam: float, a: float) -> Tensor:
    parabola = (2 * a * lam * x - x**2 - lam**2) / (2 * (a - 1))
    constant = torch.full_like(x, lam**2 * (a + 1) / 2)
    return torch.where(x <= lam, lam * x, torch.where(x <= a * lam, parabola, constant))


def _huber(x: Tensor, lam: float, delta: float) -> Tensor:
    return lam * torch.where(x <= delta, x**2 / 2, delta * (x - delta / 2))


PENALTIES = {
    "l1": Penalty(
        lambda x, lam, _: lam * x, lambda x, lam, _: lam * torch.ones_like(x), lambda lam, _: lam, convex=True
    ),
    "l0": Penalty(lambda x, lam, _: lam * (x != 0).double(), lambda x, lam, _: 0 * x, lambda lam, _: math.inf),
    "l_half": Penalty(
        lambda x, lam, _: lam * x.sqrt(), lambda x, lam, _: lam / (2 * x.sqrt()), lambda lam, _: math.inf
    ),
    "mcp": Penalty(_mcp, lambda x, lam, gamma: (lam - x / gamma).clamp(min=0), lambda lam, _: lam, 3.0, "gamma"),
    "scad": Penalty(
        _scad,
        lambda x, lam, a: torch.where(x <= lam, lam * torch.ones_like(x), ((a * lam - x) / (a - 1)).clamp(min=0)),
        lambda lam, _: lam,
        3.7,
        "a",
    ),
    "log_sum": Penalty(
        lambda x, lam, eps: lam * (x / eps).log1p(),
        lambda x, lam, eps: lam / (x + eps),
        lambda lam, eps: lam / eps,
        1.0,
        "eps",
    ),
    "huber": Penalty(
        _huber, lambda x, lam, delta: lam * x.clamp(max=delta), lambda lam, _: 0.0, 1.0, "delta", convex=True
    ),
}
KEYS = {"mcp": "mcp_gamma", "scad": "scad_a", "log_sum": "log_sum_eps", "huber": "huber_delta"}
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
    lam, t, u = strength, step, step * strength
    return {
        "l1": lambda: [u],
        "l0": lambda: [math.sqrt(2 * u)],
        "l_half": lambda: [1.5 * u ** (2 / 3)],
        "mcp": lambda: [u, shape * lam, lam * math.sqrt(shape * t)],
        "scad": lambda: [
            *(u, lam * (1 + t), lam, shape * lam, lam * (1 + shape) / 2 + u / 2),
            *(lam + math.sqrt(u * lam * (shape - 1)), lam * math.sqrt(t * (shape + 1))),
        ],
        "log_sum": lambda: [u / shape, abs(2 * math.sqrt(u) - shape), shape],
        "huber": lambda: [(1 + u) * shape, shape],
    }[name]()


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
    slope = penalty.slope(x.abs(), strength, shape) * x.sign()
    at_zero = penalty.at_zero(strength, shape) * torch.ones_like(w)
    smallest = gradient + torch.where(w == 0, -at_zero, slope)
    largest = gradient + torch.where(w == 0, at_zero, slope)
    smallest[w <= low] = -math.inf  # at a bound, what presses against it
    largest[w >= high] = math.inf
    return torch.maximum(smallest, -largest).clamp(min=0).max().item()
