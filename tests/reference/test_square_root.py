"""The square root of the reference, against exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from regkernels import reference

# --- square_root ---


def float32_samples() -> Tensor:
    """All exponents, the neighbours of powers of two and of perfect squares, subnormals, and random bit patterns."""
    bits = [torch.randint(1, 0x7F800000, (1500,))]
    edges = (torch.arange(0, 255) << 23)[:, None] + torch.tensor([0, 1, 2, 0x7FFFFE, 0x7FFFFF])
    squares = (torch.arange(1, 4096, 13).float() ** 2).view(torch.int32).long()[:, None] + torch.arange(-1, 2)
    halfway = torch.tensor([0x3F7FFFFF, 0x3F800001, 0x407FFFFF, 0x7F7FFFFF, 1, 2, 3, 0x7FFFFF, 0x800000])
    patterns = torch.cat([*bits, edges.flatten(), squares.flatten(), halfway])
    return patterns[patterns > 0].to(torch.int32).view(torch.float32)


def test_float32_square_root_is_correctly_rounded() -> None:
    x = float32_samples()
    roots = reference.square_root(x)
    assert roots.dtype == torch.float32
    neighbours = torch.nextafter(roots, torch.zeros(())), torch.nextafter(roots, torch.tensor(math.inf))
    for value, root, below, above in zip(*(t.tolist() for t in (x, roots, *neighbours)), strict=True):
        # The root lies between the midpoints to the neighbours; squares of midpoints are never a float: no ties.
        value, root = Fraction(value), Fraction(root)
        assert ((root + Fraction(below)) / 2) ** 2 < value < ((root + Fraction(above)) / 2) ** 2


def test_float64_square_root_is_that_of_the_processor() -> None:
    patterns = torch.randint(1, 0x7FF0000000000000, (5000,))
    edges = (torch.arange(0, 2047) << 52)[:, None] + torch.tensor([0, 1, (1 << 52) - 1])
    x = torch.cat([patterns, edges.flatten()]).view(torch.float64)
    assert reference.square_root(x).tolist() == [math.sqrt(value) for value in x.tolist()]
    transposed = x[:5000].view(50, 100).t()
    assert torch.equal(reference.square_root(transposed), reference.square_root(transposed.contiguous()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_square_root_of_special_values(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, -0.0, math.inf, math.nan, 4.0], dtype=dtype)
    root = reference.square_root(x)
    torch.testing.assert_close(root, torch.tensor([0.0, -0.0, math.inf, math.nan, 2.0], dtype=dtype), equal_nan=True)
    assert torch.signbit(root[:2]).tolist() == [False, True]
    assert reference.square_root(torch.zeros(0, dtype=dtype)).shape == (0,)
