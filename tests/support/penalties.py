"""The penalties beyond L1 and L2 in the loss, each with its definition in `tests.support.penalised`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import regkernels as rk
from regkernels.reference.family import FAMILY
from tests.support import penalised

STRENGTH = 0.37
SHAPES = {"mcp": 2.5, "scad": 3.1, "log_sum": 0.3, "huber": 0.6}
"""Others than the defaults."""


class Penalty(NamedTuple):
    """A key of the family, and a shape; the definition is the one in `tests.support.penalised`."""

    key: str
    shape: float

    def ours(self, params: Any, strength: Any) -> Tensor:
        function: Callable[..., Tensor] = getattr(rk, f"{self.key}_penalty")
        return function(params, strength, *([self.shape] if FAMILY[self.key].shape else []))

    def terms(self, x: Tensor, strength: Any) -> Tensor:
        """What each element adds."""
        return penalised.PENALTIES[self.key].value(x, strength, self.shape)

    def eager(self, w: Tensor, strength: Any) -> Tensor:
        return self.terms(w, strength).sum()

    def slope(self, x: Tensor, strength: float) -> Tensor:
        return penalised.PENALTIES[self.key].slope(x, strength, self.shape)

    @property
    def kinks(self) -> tuple[float, ...]:
        """Magnitudes where it is not twice differentiable, for `STRENGTH`."""
        return penalised.PENALTIES[self.key].kinks(STRENGTH, self.shape)


PENALTIES = {key: Penalty(key, SHAPES.get(key, penalised.PENALTIES[key].shape)) for key in FAMILY}


def away_from(kinks: tuple[float, ...], *shape: int) -> Tensor:
    """Random numbers in float64 at which a penalty is smooth, on all sides of where it is not."""
    x = 2 * torch.rand(shape, dtype=torch.float64)
    for kink in kinks:
        x = torch.where((x - kink).abs() < 0.02, x + 0.05, x)
    return x * (torch.rand(shape) - 0.5).sign()
