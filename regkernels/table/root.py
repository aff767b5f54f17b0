"""Computes the square root that IEEE 754 asks for, which processors have and torch does not always use."""

from __future__ import annotations

import numpy
import torch
from torch import Tensor

from regkernels import transforms


def square_root(x: Tensor) -> Tensor:
    """Returns the correctly rounded square root of a float32 or float64 tensor."""
    if x.dtype == torch.float32:
        # Exact: a double holds more than twice the bits of a float, and two more.
        return x.double().sqrt().float()
    if not x.is_cpu or transforms.unreadable(x):
        return x.sqrt()
    root = torch.empty_like(x)
    # The processor's instruction. On some processors torch calls a library, of which one root in a hundred is an ulp off.
    with numpy.errstate(invalid="ignore"):  # of what is negative NaN is the root, as torch says without a word
        numpy.sqrt(x.numpy(), out=root.numpy())
    return root
