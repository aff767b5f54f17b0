"""Specifies operations on single elements."""

from __future__ import annotations

import torch
from torch import Tensor

from regkernels.table.hyper import Hyper


def sign(x: Tensor) -> Tensor:
    """Returns -1, 0 or 1; NaN stays. The subgradient of ``|x|`` that is taken at 0 is 0."""
    zero = torch.zeros_like(x)
    return torch.where(x > 0, zero + 1, torch.where(x < 0, zero - 1, torch.where(x == 0, zero, x)))


def in_type_of(x: Tensor, value: Tensor | float) -> Tensor:
    """Returns a number, or a tensor, in the type and on the device of ``x``; a number as 0-dim, which no host waits for."""
    if isinstance(value, Tensor):
        return value.to(x.device, x.dtype)
    return torch.full((), value, dtype=x.dtype, device=x.device)


def within(x: Tensor, bound: Tensor | float) -> Tensor:
    """Brings ``x`` between -bound and bound; NaN stays."""
    bound = in_type_of(x, bound)
    low = torch.where(x < -bound, -bound, x)
    return torch.where(low > bound, bound, low)


def at_most(x: Tensor | float, bound: float, like: Tensor) -> Tensor:
    """Returns the smaller one, in the type of ``like``; NaN stays."""
    x, top = (in_type_of(like, value) for value in (x, bound))
    return torch.where(x > top, top, x)


def soft_threshold(z: Tensor, t: Tensor | float) -> Tensor:
    """Applies the proximal operator of ``t * |x|``: ``z - clamp(z, -t, t)``. Never -0.0; NaN stays; ``t == 0`` gives ``z``.

    ``z``: float32 or float64, any shape; ``t >= 0``: a number, or a tensor that broadcasts.
    Source: Parikh and Boyd, Proximal Algorithms (2014), section 6.5.2.
    """
    t = in_type_of(z, t)
    return torch.where(t > 0, z - within(z, t), z)


def threshold_of(s: Tensor | float, h: Hyper) -> Tensor | float:
    """Returns the threshold of a soft-threshold with step ``s``."""
    return h.threshold_per_step * s if h.threshold_per_step else h.threshold


def divides(h: Hyper) -> bool:
    """Tells whether there is proximal decay."""
    return bool(h.shrink_per_step) or bool(h.shrink_divisor != 1)


def divisor_of(s: Tensor | float, h: Hyper) -> Tensor | float:
    """Returns what proximal decay with step ``s`` divides by."""
    return h.shrink_per_step * s + 1.0 if h.shrink_per_step else h.shrink_divisor


def limited(z: Tensor, p: Tensor, largest: float) -> Tensor:
    """Returns what a proximal step that leads from ``z`` to ``p`` makes where it may take no more than ``largest``: ``p`` bit for
    bit where it takes no more."""
    taken = z - p
    return torch.where(magnitude(taken) > largest, z - within(taken, largest), p)


def divide(numerator: Tensor | float, denominator: Tensor | float, like: Tensor) -> Tensor:
    """Makes an IEEE division, also where one side is a number."""
    top = numerator if isinstance(numerator, Tensor) else torch.full_like(like, numerator)
    bottom = denominator if isinstance(denominator, Tensor) else torch.full_like(like, denominator)
    return top / bottom


def magnitude(x: Tensor) -> Tensor:
    """Returns the absolute value; -0.0 stays."""
    return torch.where(x < 0, -x, x)


def with_sign(x: Tensor, v: Tensor) -> Tensor:
    """Returns ``x`` where v is not negative, ``-x`` where it is."""
    return torch.where(v < 0, -x, x)


def clamp(z: Tensor, lower: float, upper: float) -> Tensor:
    """Brings ``z`` between the bounds: no -0.0 at a bound of 0; NaN stays NaN."""
    z = torch.where(z <= lower, torch.full_like(z, lower), z)
    return torch.where(z >= upper, torch.full_like(z, upper), z)


def logarithm(x: Tensor) -> Tensor:
    """Computes the logarithm of x >= 1, to about two units in the last place: of a power of two, and of what is left by its series
    in ``z = (m - 1) / (m + 1)``, ``log m = 2 (z + z**3 / 3 + z**5 / 5 + ...)``."""
    integer, bits, bias = (torch.int64, 52, 1023) if x.dtype == torch.float64 else (torch.int32, 23, 127)
    pattern = x.view(integer)
    exponent = ((pattern >> bits) - bias).to(x.dtype)
    m = ((pattern & ((1 << bits) - 1)) | (bias << bits)).view(x.dtype)
    high = m > torch.tensor(1.4142135623730951, dtype=x.dtype)
    e = torch.where(high, exponent + 1.0, exponent)
    m = torch.where(high, m * 0.5, m)
    z = (m - 1.0) / (m + 1.0)
    q = z * z
    total = torch.full_like(q, 1.0 / 21.0)
    for odd in range(19, 1, -2):
        total = total * q + torch.full_like(q, 1.0 / odd)
    total = total * q + 1.0
    return e * torch.full_like(e, 0.6931471805599453) + (z + z) * total
