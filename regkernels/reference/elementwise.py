"""Operations on single elements."""

from __future__ import annotations

import numpy
import torch
from torch import Tensor


def square_root(x: Tensor) -> Tensor:
    """The correctly rounded square root of a float32 or float64 tensor (IEEE 754)."""
    if x.dtype == torch.float32:
        return x.double().sqrt().float()  # exact: a double holds more than twice the bits of a float, and two more
    if not x.is_cpu:
        return x.sqrt()
    root = torch.empty_like(x)
    numpy.sqrt(x.numpy(), out=root.numpy())  # the processor's instruction; torch calls a library for long arrays
    return root


def sign(x: Tensor) -> Tensor:
    """-1, 0 or 1; NaN stays. The subgradient of ``|x|`` that is taken at 0 is 0."""
    zero = torch.zeros_like(x)
    return torch.where(x > 0, zero + 1, torch.where(x < 0, zero - 1, torch.where(x == 0, zero, x)))


def soft_threshold(z: Tensor, t: Tensor | float) -> Tensor:
    """The proximal operator of ``t * |x|``: ``z - clamp(z, -t, t)``. Never -0.0; NaN stays; ``t == 0`` gives ``z``.

    ``z``: float32 or float64, any shape; ``t >= 0``: a number, or a tensor that broadcasts.
    Source: Parikh and Boyd, Proximal Algorithms (2014), section 6.5.2.
    """
    t = torch.as_tensor(t, dtype=z.dtype, device=z.device)
    low = torch.where(z < -t, -t, z)
    clamped = torch.where(low > t, t, low)
    return torch.where(t > 0, z - clamped, z)


def divide(numerator: Tensor | float, denominator: Tensor | float, like: Tensor) -> Tensor:
    """An IEEE division, also where one side is a number."""
    top = numerator if isinstance(numerator, Tensor) else torch.full_like(like, numerator)
    bottom = denominator if isinstance(denominator, Tensor) else torch.full_like(like, denominator)
    return top / bottom
