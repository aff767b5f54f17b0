"""Hyper-parameters of one step, as the kernels read them: computed on the host in double, rounded once.

Every mode of regularisation is a number here, so a kernel knows no mode names and a value that changes during training
(a scheduled ``lr``, ``l1`` or ``weight_decay``) never selects another kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Hyper(NamedTuple):
    """One row of the hyper-parameter table; the defaults are neutral. Order and names are those of csrc/table.h."""

    scale: float = 1.0  # of the gradient: clipping, and -1 to maximize
    lr: float = 0.0  # 0: no weight is written
    coupled_decay: float = 0.0  # g + coupled_decay * w
    subgradient: float = 0.0  # g + subgradient * sign(w)
    decay: float = 1.0  # w * decay, before the step
    threshold: float = 0.0  # soft-threshold, the same for every element
    threshold_per_step: float = 0.0  # soft-threshold as a multiple of the element's step
    shrink_divisor: float = 1.0  # w / shrink_divisor, after the step
    shrink_per_step: float = 0.0  # w / (1 + shrink_per_step * the element's step)
    momentum: float = 0.0
    one_minus_dampening: float = 1.0
    nesterov: float = 0.0
    beta1: float = 0.0
    one_minus_beta1: float = 1.0
    beta2: float = 0.0
    one_minus_beta2: float = 1.0
    inverse_bias1: float = 1.0  # 1 / (1 - beta1**step)
    inverse_sqrt_bias2: float = 1.0  # 1 / sqrt(1 - beta2**step)
    eps: float = 0.0

    def rounded(self, dtype: torch.dtype) -> Hyper:
        """The same row with every value rounded to the compute type ``dtype``."""
        return Hyper(*torch.tensor(self, dtype=dtype).tolist())


def as_float(value: float | Tensor) -> float:
    """A hyper-parameter that may be a one-element tensor (a tensor ``lr``) as a Python float."""
    return float(value.item() if isinstance(value, Tensor) else value)


def regularisation(group: Mapping[str, Any], *, gain: float, step_per_element: bool) -> dict[str, float]:
    """The fields of `Hyper` that ``l1`` and ``weight_decay`` of a param group fill, by their modes.

    ``gain`` is the rule's steady-state gain c: the factor by which a constant gradient is amplified (1 for SGD without
    momentum and for Adam). A proximal step must shrink by ``lr * c * l1`` to solve the problem with ``l1``; with
    ``lr * l1``, SGD with momentum 0.9 solves the one with a tenth of it. ``step_per_element`` says that the rule's step
    is known in the kernel only (Adam), so the proximal step is given as a multiple of it.
    """
    lr, l1, weight_decay = as_float(group["lr"]), as_float(group["l1"]), as_float(group["weight_decay"])
    fields = {"lr": lr}
    match group["weight_decay_mode"]:
        case "coupled":
            fields["coupled_decay"] = weight_decay
        case "decoupled":
            fields["decay"] = 1.0 - lr * weight_decay
        case "prox" if step_per_element:
            fields["shrink_per_step"] = gain * weight_decay
        case "prox":
            fields["shrink_divisor"] = 1.0 + lr * gain * weight_decay
    match group["l1_mode"]:
        case "subgradient":
            fields["subgradient"] = l1
        case "decoupled":
            fields["threshold"] = lr * l1
        case "prox" if step_per_element:
            fields["threshold_per_step"] = gain * l1
        case "prox":
            fields["threshold"] = lr * gain * l1
    return fields
