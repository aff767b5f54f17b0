"""The penalties beyond L1 and L2, each with its definition, element by element."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import regkernels as rk

STRENGTH = 0.37


class Penalty(NamedTuple):
    ours: Callable[..., Tensor]
    """Of parameters and a strength."""
    term: Callable[[float, float], float]
    """What one element adds, of its magnitude and the strength: the definition."""
    eager: Callable[[Tensor, Any], Tensor]
    """The same of all elements of a tensor, in torch's operations."""
    kinks: tuple[float, ...] = (0.0,)
    """Magnitudes, in units of `STRENGTH` where it is mcp or scad, where it is not twice differentiable."""


def _mcp(x: float, s: float, gamma: float = 2.5) -> float:
    return s * x - x * x / (2 * gamma) if x <= gamma * s else gamma * s * s / 2


def _scad(x: float, s: float, a: float = 3.1) -> float:
    if x <= s:
        return s * x
    return (2 * a * s * x - x * x - s * s) / (2 * (a - 1)) if x <= a * s else s * s * (a + 1) / 2


def _huber(x: float, s: float, delta: float = 0.6) -> float:
    return s * (x * x / 2 if x <= delta else delta * (x - delta / 2))


def _eager_mcp(w: Tensor, s: Any) -> Tensor:
    x = w.abs()
    return torch.where(x <= 2.5 * s, s * x - x * x / 5, 2.5 * s * s / 2).sum()


def _eager_scad(w: Tensor, s: Any) -> Tensor:
    x = w.abs()
    middle = (6.2 * s * x - x * x - s * s) / 4.2
    return torch.where(x <= s, s * x, torch.where(x <= 3.1 * s, middle, s * s * 4.1 / 2)).sum()


def _eager_huber(w: Tensor, s: Any) -> Tensor:
    x = w.abs()
    return s * torch.where(x <= 0.6, x * x / 2, 0.6 * (x - 0.3)).sum()


PENALTIES = {
    "l0": Penalty(rk.l0_penalty, lambda x, s: s * (x != 0), lambda w, s: s * (w != 0).double().sum() + 0 * w.sum()),
    "l_half": Penalty(rk.l_half_penalty, lambda x, s: s * math.sqrt(x), lambda w, s: s * w.abs().sqrt().sum()),
    "mcp": Penalty(lambda p, s: rk.mcp_penalty(p, s, 2.5), _mcp, _eager_mcp, (0.0, 2.5 * STRENGTH)),
    "scad": Penalty(lambda p, s: rk.scad_penalty(p, s, a=3.1), _scad, _eager_scad, (0.0, STRENGTH, 3.1 * STRENGTH)),
    "log_sum": Penalty(
        lambda p, s: rk.log_sum_penalty(p, s, eps=0.3),
        lambda x, s: s * math.log1p(x / 0.3),
        lambda w, s: s * (w.abs() / 0.3).log1p().sum(),
    ),
    "huber": Penalty(lambda p, s: rk.huber_penalty(p, s, delta=0.6), _huber, _eager_huber, (0.6,)),
}


def away_from(kinks: tuple[float, ...], *shape: int) -> Tensor:
    """Random numbers in float64 at which a penalty is smooth, on all sides of where it is not."""
    x = 2 * torch.rand(shape, dtype=torch.float64)
    for kink in kinks:
        x = torch.where((x - kink).abs() < 0.02, x + 0.05, x)
    return x * (torch.rand(shape) - 0.5).sign()
