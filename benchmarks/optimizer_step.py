"""How long does a step take? AdamW with L1 and sums against torch's AdamW without, and against the textbook recipe."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

import regkernels
from benchmarks import shapes
from benchmarks.timing import Case, Contender

BYTES_PER_ELEMENT = 28  # float32 AdamW: reads w, g, m, v and writes w, m, v
L1, L2 = 1e-4, 1e-3


def parameters(of: shapes.Shapes, device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """With gradients."""
    params = [nn.Parameter(0.02 * torch.randn(shape, device=device, dtype=dtype)) for shape in of]
    for param in params:
        param.grad = 1e-3 * torch.randn_like(param)
    return params


def elements(of: shapes.Shapes) -> int:
    return sum(torch.Size(shape).numel() for shape in of)


def textbook_step(params: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """``loss + l1 * sum |w| + l2 * sum w**2``, its backward, and the step. The loss itself is left out for everyone."""
    penalty = L1 * sum(p.abs().sum() for p in params) + L2 * sum((p * p).sum() for p in params)
    assert isinstance(penalty, Tensor)
    penalty.backward()
    optimizer.step()


def large() -> Iterator[Case]:
    of = shapes.gpt2_small()
    plain, ours, recipe = parameters(of), parameters(of), parameters(of)
    recipe_optimizer = torch.optim.AdamW(recipe)
    yield Case(
        "optimizer step",
        "GPT-2 small, 148 tensors, 124 M",
        [
            Contender("torch AdamW fused", torch.optim.AdamW(plain, fused=True).step),
            Contender("torch AdamW", torch.optim.AdamW(plain).step),
            Contender("textbook recipe + torch AdamW", lambda: textbook_step(recipe, recipe_optimizer)),
            Contender("regkernels AdamW + L1 + stats", regkernels.optim.AdamW(ours, l1=L1, stats=True).step),
        ],
        BYTES_PER_ELEMENT * elements(of),
    )


def many_small() -> Iterator[Case]:
    for count, size in ((1000, 1000), (2000, 64)):
        of = shapes.equal(count, size)
        plain, ours, flat = parameters(of), parameters(of), parameters(of)
        buffers = regkernels.FlatParameters(flat)
        yield Case(
            "many small tensors",
            f"{count} x {size}",
            [
                Contender("torch AdamW fused", torch.optim.AdamW(plain, fused=True).step),
                Contender("regkernels AdamW + L1 + stats", regkernels.optim.AdamW(ours, l1=L1, stats=True).step),
                Contender("the same, FlatParameters", regkernels.optim.AdamW(flat, l1=L1, stats=True).step),
            ],
            BYTES_PER_ELEMENT * elements(of),
        )
        del buffers
