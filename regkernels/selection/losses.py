"""Tells losses apart: by what they return of a batch, and whether they are functions at all."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

SHIFTS = (0.0, 1.0, -1.0, 16.0, -16.0)
"""Added to outputs until a loss is no longer 0: what is 0 doubles and does not."""


def without_arguments(loss: Any) -> Any:
    """Returns the function that a loss is a partial call of."""
    while isinstance(loss, functools.partial):
        loss = loss.func
    return loss


def check_function(loss: Any) -> None:
    """Raises where a loss cannot be called with outputs and targets: for a class where an instance is meant, and all else.

    Raises:
        TypeError: naming what was given.
    """
    named = without_arguments(loss)
    if isinstance(named, type):
        raise TypeError(
            f"loss must be a function of outputs and targets, got the class {named.__name__}: pass an instance, {named.__name__}()"
        )
    if not callable(named):
        raise TypeError(f"loss must be a function of outputs and targets, got {loss!r}")


def is_cross_entropy(loss: Any) -> bool:
    """Tells whether a loss is torch's for classes, with an output for each."""
    named = without_arguments(loss)
    return named is functional.cross_entropy or isinstance(named, nn.CrossEntropyLoss)


@torch.no_grad()
def check_mean(loss: Any, outputs: Tensor, targets: Tensor) -> None:
    """Raises where a loss that returns one number grows with the number of samples.

    Args:
        loss: of ``outputs`` and ``targets``, some samples.

    Raises:
        ValueError: for a sum over samples, with whatever constant factor.
    """
    for shift in SHIFTS:
        shifted = outputs + shift
        once = loss(shifted, targets)
        twice = loss(torch.cat([shifted, shifted]), torch.cat([targets, targets]))
        if once.isfinite().all() and twice.isfinite().all() and (once != 0).all():
            if torch.isclose(twice, 2 * once, rtol=1e-4, atol=0.0).all():
                raise ValueError(
                    'loss must be a mean over the samples, got one that doubles with them: pass reduction="mean" to it, or divide '
                    "by len(targets) in it"
                )
            return
