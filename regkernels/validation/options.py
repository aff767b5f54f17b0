"""Checks arguments and the options of param groups: numbers, choices, and what they are listed in."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from regkernels import transforms
from regkernels.reference.family import Shape
from regkernels.table.hyper import as_float

FLAGS = ("maximize", "nesterov", "amsgrad", "centered", "capturable", "differentiable")
L1Mode = Literal["prox", "decoupled", "subgradient"]
WeightDecayMode = Literal["coupled", "decoupled", "prox", "cautious"]
L1_MODES = get_args(L1Mode)
WEIGHT_DECAY_MODES = get_args(WeightDecayMode)


def finite(name: str, value: Any, where: str = "", *, wait: bool = True) -> float:
    """Returns ``value`` as a float; raises unless it is a finite number or a tensor of one.

    Reading a tensor on an accelerator makes the host wait; with ``wait=False`` it is not looked at, and 0 is returned.
    """
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"{name} must be a number or a tensor of one element, got shape {tuple(value.shape)}{where}")
    if isinstance(value, Tensor) and (value.is_complex() or value.is_meta):
        raise TypeError(f"{name} must be a real number, got a {value.dtype} tensor on {value.device}{where}")
    if not isinstance(value, (numbers.Real, Tensor)):
        raise TypeError(f"{name} must be a number, got {value!r}{where}")
    if isinstance(value, Tensor) and transforms.unreadable(value):
        return _hidden(name, value, where)
    if not wait and _out_of_sight(value):
        return 0.0
    try:
        number = as_float(value)  # type: ignore[arg-type]
    except OverflowError:  # a whole number beyond float64
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}{where}")
    return number


def _hidden(name: str, value: Tensor, where: str) -> float:
    """Returns the smallest of the numbers that a tensor of torch.func stands for; raises unless all are finite. 0 for one whose value is not there."""
    own = transforms.innermost(value)
    if transforms.unreadable(own) or not own.is_cpu:
        return 0.0
    return min(finite(name, number, where) for number in own.detach().reshape(-1).tolist())


def _out_of_sight(value: object) -> bool:
    """Tells whether reading a value would make the host wait for a device, or is not possible."""
    return isinstance(value, Tensor) and (not value.is_cpu or transforms.unreadable(value))


def may_be_positive(value: float | Tensor) -> bool:
    """Tells whether a number that is not negative could be positive: a tensor on an accelerator could."""
    return _out_of_sight(value) or as_float(value) > 0


def nonnegative(name: str, value: Any, where: str = "", *, wait: bool = True) -> float:
    """Returns ``value`` as a float; raises unless it is finite and not negative."""
    number = finite(name, value, where, wait=wait)
    if number < 0:
        raise ValueError(f"{name} must be >= 0, got {number}{where}")
    return number


def shape(parameter: Shape, name: str, value: Any, where: str = "") -> float:
    """Returns ``value`` as a float, where it is a number that the second parameter of a penalty may be."""
    number = finite(name, value, where)
    if not parameter.allows(number):
        bound = parameter.bound if number > parameter.above else f"> {parameter.above:g}"
        raise ValueError(f"{name} must be {bound}, got {value}{where}")
    return number


def decay_rate(name: str, value: Any, where: str = "", *, wait: bool = True) -> None:
    """Raises unless ``value`` is a number in [0, 1)."""
    if not 0 <= finite(name, value, where, wait=wait) < 1:
        raise ValueError(f"{name} must be in [0, 1), got {as_float(value)}{where}")


def betas(value: Any, where: str = "", *, wait: bool = True) -> None:
    """Raises unless ``value`` is a pair of numbers in [0, 1)."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(f"betas must be a pair of numbers, got {value!r}{where}")
    for index, beta in enumerate(value):
        decay_rate(f"betas[{index}]", beta, where, wait=wait)


def seed(value: Any) -> int:
    """Returns ``value`` as an int; raises unless it is a whole number that fits into a word of 32 bits."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"seed must be a whole number, got {value!r}")
    number = int(value)
    if not 0 <= number < 2**32:
        raise ValueError(f"seed must be in [0, 2**32), got {number}; take it modulo 2**32")
    return number


def one_of(name: str, value: object, allowed: tuple[object, ...], where: str = "") -> None:
    """Raises unless ``value`` is among those allowed."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}{where}")


def bounds(value: Any, name: str, where: str = "") -> tuple[float, float]:
    """Returns (low, high), of which each may be infinite; raises unless ``value`` is such a pair."""
    if not isinstance(value, (tuple, list)) or not all(isinstance(v, numbers.Real) for v in value) or len(value) != 2:
        raise ValueError(f"{name} must be a pair of numbers (low, high), got {value!r}{where}")
    low, high = float(value[0]), float(value[1])
    if not low <= high:
        raise ValueError(f"{name} must have low <= high, got {value!r}{where}")
    if low == math.inf or high == -math.inf:
        raise ValueError(f"{name} must leave finite numbers between its bounds, got {value!r}{where}")
    return low, high


def decay_mode(mode: WeightDecayMode | None, decoupled: bool) -> WeightDecayMode:
    """Returns ``weight_decay_mode``, where torch's ``decoupled_weight_decay`` may say the same."""
    if mode is None:
        return "decoupled" if decoupled else "coupled"
    if decoupled and mode != "decoupled":
        raise ValueError(f"decoupled_weight_decay=True contradicts weight_decay_mode={mode!r}; leave one of them out")
    return mode


def shrink_limit(value: Any, where: str = "") -> None:
    """Raises unless ``value`` is None or a finite number greater than 1."""
    if value is None:
        return
    if isinstance(value, (bool, Tensor)):
        raise TypeError(f"shrink_limit must be a number greater than 1, or None, got {value!r}{where}")
    number = finite("shrink_limit", value, f"{where}; None is no limit")
    if number <= 1:
        raise ValueError(
            f"shrink_limit must be greater than 1, got {number:g}{where}: an optimizer moves a weight by up to lr in a step, and what "
            "is taken from it must be able to exceed that, or else it comes to rest where it should be 0; 2 is the default, None is "
            "no limit"
        )


def regularised_group(group: Mapping[str, Any], where: str, *, wait: bool) -> None:
    """Raises where a key of a param group that every optimizer has has a value that is not allowed."""
    for name in ("lr", "l1", "weight_decay"):
        nonnegative(name, group[name], where, wait=wait)
    one_of("l1_mode", group["l1_mode"], L1_MODES, where)
    one_of("weight_decay_mode", group["weight_decay_mode"], WEIGHT_DECAY_MODES, where)
    shrink_limit(group.get("shrink_limit"), where)
    for name in FLAGS:
        flag(name, group.get(name), where)
    parameter_numbers(group, where)
    if group.get("differentiable"):
        raise ValueError(
            f"differentiable=True is not supported{where}: the step is one kernel that autograd cannot see into; "
            "use torch.optim for differentiating through an optimizer step"
        )


def flag(name: str, value: Any, where: str = "") -> None:
    """Raises unless ``value`` can be asked whether it is true. A tensor on an accelerator is not asked."""
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"{name} must be True or False, got a tensor of shape {tuple(value.shape)}{where}")


def parameter_numbers(group: Mapping[str, Any], where: str) -> None:
    """Raises unless ``param_numbers`` of a param group, where it has them, are one for each of its parameters."""
    given, params = group.get("param_numbers"), group.get("params")
    if given is None or not isinstance(params, (list, tuple)):
        return
    if not isinstance(given, (list, tuple, range)) or len(given) != len(params):
        raise ValueError(
            f"param_numbers must list one number for each of {len(params)} parameters, got {given!r}{where}"
        )
    for number in given:
        if isinstance(number, bool) or not isinstance(number, numbers.Integral) or not 0 <= int(number) < 2**63:
            raise ValueError(f"param_numbers must be whole numbers in [0, 2**63), got {number!r}{where}")


def parameters_argument(params: Any) -> None:
    """Raises for ``params`` that torch lets pass, or refuses without saying what it got."""
    if isinstance(params, (str, bytes)):
        raise TypeError(
            f"params must be an iterable of tensors or of dicts, got the string {params!r}; pass model.parameters()"
        )
    if isinstance(params, torch.nn.Module):
        raise TypeError(
            f"params must be an iterable of tensors or of dicts, got a {type(params).__name__}; "
            "pass model.parameters(), or regkernels.param_groups(model, ...)"
        )


def param_group_argument(param_group: Any) -> None:
    """Raises for a param group that is no dictionary."""
    if not isinstance(param_group, dict):
        raise TypeError(f"param_group must be a dict, got {type(param_group).__name__}; pass {{'params': [...]}}")
