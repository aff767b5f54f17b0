"""Numbers whose sums are hard to form in float32, and what the sums of a step are checked against."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regkernels as rk
from regkernels.optim import Stats

SIZE = 2309
"""Some blocks and a rest."""

PRECISION = 1e-10


def random(lowest: float, highest: float, dtype: torch.dtype) -> Tensor:
    """Random signs, and magnitudes between two powers of ten."""
    exponents = lowest + (highest - lowest) * torch.rand(SIZE, dtype=torch.float64)
    return (torch.sign(torch.randn(SIZE)) * 10.0**exponents).to(dtype)


def numbers(kind: str, dtype: torch.dtype) -> Tensor:
    reach = 4.5 if dtype == torch.float16 else 38.4
    match kind:
        case "ordinary":
            return torch.randn(SIZE).to(dtype)
        case "equal":  # each is rounded alike, so roundings add up
            return torch.full((SIZE,), 0.1, dtype=dtype)
        case "one large":
            x = random(-4, -3, dtype)
            x[SIZE // 3] = 1e4
            return x
        case "mixed":
            return random(-min(reach, 18), min(reach, 18), dtype)
        case "every":
            return random(-reach, reach, dtype)
        case "tiny":  # in float32 their squares would be 0
            return random(-7 if dtype == torch.float16 else -38, -4.5 if dtype == torch.float16 else -24, dtype)
        case "on the edge":  # the squares are subnormal, or just not
            return random(-7, -5, dtype) if dtype == torch.float16 else random(-22, -18, dtype)
        case "subnormal":
            return torch.finfo(dtype).smallest_normal * torch.rand(SIZE).to(dtype)
        case "huge":
            return random(reach - 1, reach - 0.1, dtype)
        case "zero but one":
            x = torch.zeros(SIZE, dtype=dtype)
            x[-2] = torch.finfo(dtype).smallest_normal
            return x
        case _:
            return torch.zeros(SIZE, dtype=dtype)


KINDS = (
    "ordinary", "equal", "one large", "mixed", "every", "tiny", "on the edge", "subnormal", "huge", "zero but one", "zero"
)  # fmt: skip


def exactly(x: Tensor, power: int) -> float:
    return math.fsum((x.detach().double().abs() ** power).tolist())


def close(expected: float) -> Any:
    return pytest.approx(expected, rel=PRECISION, abs=0, nan_ok=True)


def step(w: Tensor, g: Tensor, **options: Any) -> tuple[Tensor, Stats]:
    param = nn.Parameter(w.clone())
    param.grad = g.clone()
    optimizer = rk.optim.SGD([param], **{"lr": 0.01, "l1": 0.1, "stats": True, **options})
    optimizer.step()
    return param.detach(), optimizer.stats


def assert_sums(w: Tensor, g: Tensor, stats: Stats) -> None:
    assert stats.l1_norm.item() == close(exactly(w, 1))
    assert stats.squared_norm.item() == close(exactly(w, 2))
    assert stats.nonzeros.item() == w.count_nonzero()
    assert stats.grad_norm.item() == close(math.sqrt(exactly(g, 2)))
