"""Specifies proximal operators in the metric of a step that somebody else has made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from regkernels.reference.elementwise import divide
from regkernels.reference.rules import variance
from regkernels.reference.step import proximal_step
from regkernels.table.formats import compute_dtype
from regkernels.table.hyper import Hyper
from regkernels.table.root import square_root


class Metric(NamedTuple):
    """Says what the step s of an element is computed from: ``apply(operands, h)``, with as many tensors as ``operands`` says."""

    apply: Callable[[Sequence[Tensor], Hyper], Tensor | float]
    operands: int


def constant(operands: Sequence[Tensor], h: Hyper) -> float:
    """Returns the same for all elements, as SGD has it."""
    return float(h.lr)


def root(operands: Sequence[Tensor], h: Hyper) -> Tensor:
    """Takes the root of a second moment: Adam, RMSprop, Adagrad."""
    (square_avg,) = operands
    return divide(h.lr, square_root(square_avg) * h.inverse_sqrt_bias2 + h.eps, like=square_avg)


def centered(operands: Sequence[Tensor], h: Hyper) -> Tensor:
    """Takes the root of a variance: RMSprop with ``centered``."""
    square_avg, grad_avg = operands
    return divide(h.lr, square_root(variance(square_avg, grad_avg)) + h.eps, like=square_avg)


def reciprocal(operands: Sequence[Tensor], h: Hyper) -> Tensor:
    """Takes the reciprocal of a norm: Adamax."""
    (norm,) = operands
    return divide(h.lr, norm + h.eps, like=norm)


def direct(operands: Sequence[Tensor], h: Hyper) -> Tensor:
    """Takes the steps themselves."""
    return operands[0]


METRICS = {
    "constant": Metric(constant, 0),
    "root": Metric(root, 1),
    "centered": Metric(centered, 2),
    "reciprocal": Metric(reciprocal, 1),
    "direct": Metric(direct, 1),
}


@torch.no_grad()
def proximal_(metric: str, weight: Tensor, operands: Sequence[Tensor], hyper: Hyper) -> None:
    """Makes steps 8 and 9 of the specification, after a step that is over. Mutates ``weight``.

    ``weight``: float64, float32, float16 or bfloat16, rounded to nearest; ``operands``: of its shape, in its dtype or in
    `compute_dtype`, read only. Of ``hyper`` count the strengths, what the metric needs, ``lr`` (0 leaves the weight's bits
    alone) and ``skip``.
    """
    dtype = compute_dtype(weight.dtype)
    h = hyper.rounded(dtype)
    if h.skip or not h.lr:
        return
    s = METRICS[metric].apply([operand.to(dtype) for operand in operands], h)
    weight.copy_(proximal_step(weight.to(dtype), s, h))
