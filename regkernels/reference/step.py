"""The step: a rule between two regularisation steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regkernels.hyper import Hyper
from regkernels.reference.elementwise import compute_dtype, divide, sign, soft_threshold
from regkernels.reference.rules import RULES


@torch.no_grad()
def update_(rule: str, weight: Tensor, gradient: Tensor, states: Sequence[Tensor], hyper: Hyper) -> None:
    """One optimizer step of one tensor. Mutates ``weight`` and ``states``; ``gradient`` is read only.

    ``weight`` and ``gradient``: float64, float32, float16 or bfloat16, same shape and dtype, real. ``states``: as many as
    the rule has, in `compute_dtype`. A step with ``lr == 0`` updates the states and leaves the weight's bits alone.
    """
    dtype = compute_dtype(weight.dtype)
    h = hyper.rounded(dtype)
    w = weight.to(dtype)
    g = gradient.to(dtype) * h.scale
    if h.coupled_decay:
        g = g + h.coupled_decay * w
    if h.subgradient:
        g = g + h.subgradient * sign(w)
    w = w * h.decay
    u, s = RULES[rule].apply(g, states, h)
    z = w - s * u
    t = h.threshold_per_step * s if h.threshold_per_step else h.threshold
    z = soft_threshold(z, t)
    divisor = h.shrink_per_step * s + 1.0 if h.shrink_per_step else h.shrink_divisor
    z = divide(z, divisor, like=z)
    if h.lr:
        weight.copy_(z)
