"""What the tests of `attach_prox` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Make = Callable[[Any], torch.optim.Optimizer]


def of(name: str, **options: Any) -> Make:
    return lambda params: getattr(torch.optim, name)(params, **options)


def parameter(*shape: int, dtype: torch.dtype = torch.float64) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape).to(dtype))


def closed_form(z: Tensor, t: Tensor | float, divisor: Tensor | float = 1.0) -> Tensor:
    return z.sign() * (z.abs() - t).clamp(min=0) / divisor
