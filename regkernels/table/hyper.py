"""Computes the hyper-parameters of one step, as the kernels read them: on the host in double, rounded once.

Every mode of regularisation is a number here, so a kernel knows no mode names and a value that changes during training
(a scheduled ``lr``, ``l1`` or ``weight_decay``) never selects another kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regkernels.table import root
from regkernels.table.deferred import Deferred

Scalar = float | Tensor
"""Whatever is known of a number: its value, or where it lies on a device."""

Number = Scalar | Deferred
"""What formulas of hyper-parameters are written for."""

SHRINK_LIMIT = 2.0
"""What a proximal step takes from a weight at most, in steps of size lr, where nobody says otherwise."""


class Hyper(NamedTuple):
    """Holds one row of the hyper-parameter table; the defaults are neutral. Order and names are those of csrc/lists.h.

    On an accelerator a value may be a number that only the device knows, see `number`; the same arithmetic makes it. It may be a vector
    of such numbers, too: then the row stands for as many.
    """

    scale: Scalar = 1.0  # of the gradient: clipping, and -1 to maximize
    lr: Scalar = 0.0  # 0: no weight is written
    coupled_decay: Scalar = 0.0  # g + coupled_decay * w
    subgradient: Scalar = 0.0  # g + subgradient * sign(w)
    decay: Scalar = 1.0  # w * decay, before the step
    threshold: Scalar = 0.0  # soft-threshold, the same for every element
    threshold_per_step: Scalar = 0.0  # soft-threshold as a multiple of the element's step
    shrink_divisor: Scalar = 1.0  # w / shrink_divisor, after the step
    shrink_per_step: Scalar = 0.0  # w / (1 + shrink_per_step * the element's step)
    momentum: Scalar = 0.0
    one_minus_dampening: Scalar = 1.0
    nesterov: Scalar = 0.0
    beta1: Scalar = 0.0
    one_minus_beta1: Scalar = 1.0
    beta2: Scalar = 0.0  # RMSprop's alpha
    one_minus_beta2: Scalar = 1.0
    inverse_bias1: Scalar = 1.0  # 1 / (1 - beta1**step)
    inverse_sqrt_bias2: Scalar = 1.0  # 1 / sqrt(1 - beta2**step)
    eps: Scalar = 0.0
    gain: Scalar = 1.0  # of the rule: a penalty's step is gain * the element's step
    strength: Scalar = 0.0  # of a penalty beyond l1
    shape: Scalar = 1.0  # its second parameter: gamma, a, eps, delta
    largest_shrink: Scalar = math.inf  # what a proximal step takes from a weight at most
    lower: Scalar = -math.inf  # bounds of the weight, after the penalty
    upper: Scalar = math.inf
    cautious: Scalar = 0.0  # not 0: decay only where it does not work against the move
    group_strength: Scalar = 0.0  # group soft-threshold as a multiple of the group's step
    group_by_size: Scalar = 1.0  # not 0: that times sqrt(elements of the group)
    max_norm: Scalar = math.inf  # of a group
    unit_norm: Scalar = 0.0  # not 0: groups are scaled to norm 1
    skip: Scalar = 0.0  # not 0: nothing is written
    seed: Scalar = 0.0  # of stochastic rounding, a whole number below 2**32
    step: Scalar = 0.0  # the number of the step, from 1, which stochastic rounding depends on

    @classmethod
    def of(cls, fields: Mapping[str, Number]) -> Hyper:
        """Makes a row for a backend, which computes what is deferred; the specification, which is given values, has no such types."""
        return cls(**fields)  # type: ignore[arg-type]

    def rounded(self, dtype: torch.dtype) -> Hyper:
        """Returns the row with every value rounded to the compute type ``dtype``."""
        return Hyper(*torch.tensor(self, dtype=dtype, device="cpu").tolist())

    @property
    def multiplicity(self) -> int:
        """Returns how many rows it stands for."""
        return max(deferred(value).count if isinstance(value, (Tensor, Deferred)) else 1 for value in self)


def one_by_one(rows: Iterable[Hyper], device: torch.device) -> list[Hyper]:
    """Returns the rows that ``rows`` stand for, each by itself; numbers that are not known are tensors on ``device``."""
    listed = []
    for row in _computed(rows, device):
        count = row.multiplicity
        columns = [value.expand(count).unbind() if isinstance(value, Tensor) else [value] * count for value in row]
        listed += [row] if count == 1 else [Hyper(*values) for values in zip(*columns, strict=True)]
    return listed


def on_host(rows: Sequence[Hyper], device: torch.device) -> list[Hyper]:
    """Returns rows in numbers. What ``device`` knows comes in one copy, which the host waits for."""
    computed = _computed(rows, device)
    tensors = [value for value in chain(*computed) if isinstance(value, Tensor)]
    if not tensors:
        return computed
    read = iter(torch.stack([value.reshape(()) for value in tensors]).tolist())
    return [Hyper(*(next(read) if isinstance(value, Tensor) else value for value in row)) for row in computed]


def _computed(rows: Iterable[Hyper], device: torch.device) -> list[Hyper]:
    """Returns rows in which what only a device knows are float64 tensors on ``device``."""
    known: dict[Deferred, Tensor] = {}
    return [
        Hyper(*(deferred(one).computed(device, known) if isinstance(one, (Tensor, Deferred)) else one for one in row))
        for row in rows
    ]


def deferred(value: Tensor | Deferred) -> Deferred:
    """Returns a number that only a device knows, for arithmetic that is not done at once."""
    return Deferred.of(value) if isinstance(value, Tensor) else value


def number(value: Number, group: Mapping[str, Any]) -> Number:
    """Returns an option of a param group for arithmetic: a float, or what is written down for the device.

    A tensor on an accelerator stays there: reading its value would make the host wait for the device. So does any
    tensor of a capturable optimizer: a captured step must see it change.
    """
    if type(value) is float:
        return value
    if isinstance(value, Tensor) and (not value.is_cpu or group.get("capturable")):
        return Deferred.of(value)
    return as_float(value)


def square_root(value: Number) -> Number:
    if isinstance(value, Tensor):
        return root.square_root(value)
    return value.sqrt() if isinstance(value, Deferred) else math.sqrt(value)


def select(condition: bool | Tensor | Deferred, value: Number, otherwise: Number) -> Number:
    """Returns one of the two values, by a condition that only a device may know."""
    if isinstance(condition, bool):
        return value if condition else otherwise
    return Deferred("choose", condition, value, otherwise)


def averages(group: Mapping[str, Any]) -> dict[str, Number]:
    """Returns the fields of `Hyper` that ``betas`` of a param group fill."""
    beta1, beta2 = (number(beta, group) for beta in group["betas"])
    return {"beta1": beta1, "one_minus_beta1": 1.0 - beta1, "beta2": beta2, "one_minus_beta2": 1.0 - beta2}


def clip_factor(square_sum: Number, max_norm: float) -> Number:
    """Returns what torch.nn.utils.clip_grad_norm_ multiplies gradients by. A norm that is NaN makes all NaN, there and here."""
    clip = max_norm / (square_root(square_sum) + 1e-6)
    if isinstance(clip, Deferred):
        return select(clip > 1.0, 1.0, clip)
    return min(clip, 1.0) if clip == clip else clip


def as_float(value: Number) -> float:
    """Returns a hyper-parameter that may be a one-element tensor (a tensor ``lr``) as a Python float; waits for its device."""
    return float(value.item() if isinstance(value, Tensor) else value)


def regularisation(
    group: Mapping[str, Any], *, gain: float, step_per_element: bool, lr_divisor: Number = 1.0
) -> dict[str, Number]:
    """Returns the fields of `Hyper` that ``l1`` and ``weight_decay`` of a param group fill, by their modes.

    ``gain`` is the rule's steady-state gain c: the factor by which a constant gradient is amplified (1 for SGD without
    momentum and for Adam). A proximal step must shrink by ``lr * c * l1`` to solve the problem with ``l1``; with
    ``lr * l1``, SGD with momentum 0.9 solves the one with a tenth of it. ``step_per_element`` says that the rule's step
    is known in the kernel only (Adam), so the proximal step is given as a multiple of it. ``lr_divisor`` divides lr
    wherever it appears.

    Such a step grows without bound where the gradient vanishes, by which an adaptive rule moves no weight further than lr or so;
    ``shrink_limit`` of the group bounds in the same way what is taken from a weight.
    """
    lr, l1, weight_decay = (number(group[key], group) for key in ("lr", "l1", "weight_decay"))
    lr = lr / lr_divisor
    fields: dict[str, Number] = {"lr": lr, "gain": gain}
    match group["weight_decay_mode"]:
        case "coupled":
            fields["coupled_decay"] = weight_decay
        case "decoupled" | "cautious":
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
    if step_per_element:
        fields["largest_shrink"] = largest_shrink(group, lr * gain)
    return fields


def largest_shrink(group: Mapping[str, Any], unit: Number) -> Number:
    """Returns the field of that name: ``shrink_limit`` of a param group times ``unit``, lr with the gain."""
    limit = group.get("shrink_limit", SHRINK_LIMIT)
    return math.inf if limit is None else limit * unit
