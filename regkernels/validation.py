"""Checks of user input. Each raises before anything is changed and names the argument, its value and what is allowed."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from regkernels import memory
from regkernels.distributed import shards
from regkernels.table.formats import Precision
from regkernels.table.hyper import as_float

if TYPE_CHECKING:
    from regkernels.reference.family import Shape

L1_MODES = ("prox", "decoupled", "subgradient")
WEIGHT_DECAY_MODES = ("coupled", "decoupled", "prox", "cautious")
WEIGHT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def finite(name: str, value: Any, where: str = "", *, wait: bool = True) -> float:
    """``value`` as a float, where it is a finite number or a tensor of one.

    Reading a tensor on an accelerator makes the host wait; with ``wait=False`` it is not looked at, and 0 is returned.
    """
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"{name} must be a number or a tensor of one element, got shape {tuple(value.shape)}{where}")
    if isinstance(value, Tensor) and (value.is_complex() or value.is_meta):
        raise TypeError(f"{name} must be a real number, got a {value.dtype} tensor on {value.device}{where}")
    if not isinstance(value, (numbers.Real, Tensor)):
        raise TypeError(f"{name} must be a number, got {value!r}{where}")
    if not wait and _out_of_sight(value):
        return 0.0
    number = as_float(value)  # type: ignore[arg-type]
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}{where}")
    return number


def _out_of_sight(value: object) -> bool:
    return isinstance(value, Tensor) and not value.is_cpu


def may_be_positive(value: float | Tensor) -> bool:
    """Whether a number that is not negative could be positive: a tensor on an accelerator could."""
    return _out_of_sight(value) or as_float(value) > 0


def nonnegative(name: str, value: Any, where: str = "", *, wait: bool = True) -> float:
    """``value`` as a float, where it is finite and not negative."""
    number = finite(name, value, where, wait=wait)
    if number < 0:
        raise ValueError(f"{name} must be >= 0, got {number}{where}")
    return number


def decay_rate(name: str, value: Any, where: str = "", *, wait: bool = True) -> None:
    """A number in [0, 1)."""
    if not 0 <= finite(name, value, where, wait=wait) < 1:
        raise ValueError(f"{name} must be in [0, 1), got {as_float(value)}{where}")


def betas(value: Any, where: str = "", *, wait: bool = True) -> None:
    """Two numbers in [0, 1)."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(f"betas must be a pair of numbers, got {value!r}{where}")
    for index, beta in enumerate(value):
        decay_rate(f"betas[{index}]", beta, where, wait=wait)


def seed(value: Any) -> int:
    """A whole number that fits into a word of 32 bits."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"seed must be a whole number, got {value!r}")
    number = int(value)
    if not 0 <= number < 2**32:
        raise ValueError(f"seed must be in [0, 2**32), got {number}; take it modulo 2**32")
    return number


def one_of(name: str, value: object, allowed: tuple[object, ...], where: str = "") -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}{where}")


def bounds(value: Any, name: str, where: str = "") -> tuple[float, float]:
    """(low, high), of which each may be infinite."""
    if not isinstance(value, (tuple, list)) or not all(isinstance(v, numbers.Real) for v in value) or len(value) != 2:
        raise ValueError(f"{name} must be a pair of numbers (low, high), got {value!r}{where}")
    low, high = float(value[0]), float(value[1])
    if not low <= high:
        raise ValueError(f"{name} must have low <= high, got {value!r}{where}")
    if low == math.inf or high == -math.inf:
        raise ValueError(f"{name} must leave finite numbers between its bounds, got {value!r}{where}")
    return low, high


def l1_weight(weight: Any, param: Tensor, name: str, of: str) -> None:
    """A tensor that weighs the l1 of each element of ``param``, which is called ``of``."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(weight).__name__} (for {of})")
    wanted = torch.float64 if param.dtype == torch.float64 else torch.float32
    for what, got, expected in (
        ("shape", tuple(weight.shape), tuple(param.shape)),
        ("dtype", weight.dtype, wanted),
        ("device", str(weight.device), str(param.device)),
        ("layout", weight.layout, torch.strided),
    ):
        if got != expected:
            raise ValueError(f"{name} has {what} {got}; for {of} it must be {expected}")
    if not shards.is_spread_alike(weight, param):
        raise ValueError(
            f"{name} is {shards.kind(weight)}, {of} is {shards.kind(param)}: they must be spread alike; make it with "
            "torch.distributed.tensor.distribute_tensor(weight, param.device_mesh, param.placements), or detach() it"
        )
    weight = shards.held(weight)
    if weight.is_inference():
        raise ValueError(
            f"{name} was made under torch.inference_mode(), where changes leave no trace; pass a clone of it, or use "
            "torch.no_grad()"
        )
    if weight.is_cpu and not bool((weight >= 0).all()):
        raise ValueError(f"{name} must be >= 0 everywhere (for {of}), got a minimum of {weight.min().item()}")


def precision(asked: Precision, param: Tensor, name: str) -> None:
    """Whether a parameter can be rounded and have states as ``asked``."""
    if asked.rounding == "remainder" and param.dtype == torch.float16:
        raise ValueError(
            f'param_rounding="remainder" needs bfloat16 weights, and {name} is float16: 16 more bits make a bfloat16 an exact '
            'float32, but not a float16; choose "master" or "stochastic"'
        )
    if asked.state_dtype is None:
        return
    if param.is_complex():
        raise ValueError(
            f"state_dtype={asked.state_dtype} needs real parameters, and {name} is {param.dtype}; leave it out"
        )
    if param.dtype == torch.float64:
        raise ValueError(
            f"state_dtype={asked.state_dtype} needs weights that are computed in float32, and {name} is float64; leave it out, "
            "or convert the model"
        )


def decay_mode(mode: str | None, decoupled: bool) -> str:
    """``weight_decay_mode``, where torch's ``decoupled_weight_decay`` may say the same."""
    if mode is None:
        return "decoupled" if decoupled else "coupled"
    if decoupled and mode != "decoupled":
        raise ValueError(f"decoupled_weight_decay=True contradicts weight_decay_mode={mode!r}; leave one of them out")
    return mode


def regularised_group(group: Mapping[str, Any], where: str, *, wait: bool) -> None:
    """The keys of a param group that every optimizer has."""
    for name in ("lr", "l1", "weight_decay"):
        nonnegative(name, group[name], where, wait=wait)
    one_of("l1_mode", group["l1_mode"], L1_MODES, where)
    one_of("weight_decay_mode", group["weight_decay_mode"], WEIGHT_DECAY_MODES, where)
    if group.get("differentiable"):
        raise ValueError(
            f"differentiable=True is not supported{where}: the step is one kernel that autograd cannot see into; "
            "use torch.optim for differentiating through an optimizer step"
        )


def parameters_argument(params: Any) -> None:
    """What torch lets pass or refuses without saying what it got."""
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


def parameter(param: Tensor, name: str) -> None:
    """A tensor that an optimizer can update in place."""
    if isinstance(param, torch.nn.UninitializedParameter):
        return  # checked once a forward pass has given it a shape
    if shards.is_dtensor(param):
        shards.check_parameter(param, name)
        param = shards.held(param)
    elif is_traceable_wrapper_subclass(param):
        raise TypeError(
            f"{name} is a {type(param).__name__}, which has no memory of its own to update; pass its local tensor"
        )
    if param.is_sparse or param.layout != torch.strided:
        raise TypeError(f"{name} has layout {param.layout}; only dense (torch.strided) parameters can be updated")
    if memory.overlaps_itself(param):
        raise ValueError(
            f"{name} is expanded or overlaps itself (shape {tuple(param.shape)}, strides {param.stride()}): several of its "
            "elements are one place in memory; pass a clone() of it"
        )
    dtype = param.dtype.to_real() if param.is_complex() else param.dtype
    if dtype not in WEIGHT_DTYPES:
        raise TypeError(f"{name} has dtype {param.dtype}; allowed are float64, float32, float16, bfloat16 and complex")


def shape(parameter: Shape, name: str, value: Any, where: str = "") -> float:
    """``value`` as a float, where it is a number that the second parameter of a penalty may be."""
    number = finite(name, value, where)
    if not parameter.allows(number):
        bound = parameter.bound if number > parameter.above else f"> {parameter.above:g}"
        raise ValueError(f"{name} must be {bound}, got {value}{where}")
    return number


def complex_parameter(param: Tensor, l1: float | Tensor, rule: str, name: str) -> None:
    if param.is_complex() and rule == "lion":
        raise ValueError(
            f"{name} is complex: Lion takes signs, which complex numbers have not; choose another optimizer"
        )
    if param.is_complex() and may_be_positive(l1):
        raise ValueError(
            f"{name} is complex and its l1 is {l1}: an L1 penalty is defined for real parameters only; "
            "put complex parameters into a group with l1=0"
        )


def one_device(params: Sequence[Tensor], index: int) -> torch.device | None:
    """The device of a param group; None where it is empty."""
    first = next(iter(params), None)
    for position, param in enumerate(params):
        assert first is not None
        if param.device != first.device:
            raise ValueError(
                f"param group {index} has parameters on several devices: parameter 0 on {str(first.device)!r}, parameter "
                f"{position} on {str(param.device)!r}; make a param group for each device"
            )
    return None if first is None else first.device


def unique_parameters(groups: Iterable[Mapping[str, Any]]) -> None:
    seen: dict[int, tuple[int, int]] = {}
    for index, group in enumerate(groups):
        for position, param in enumerate(group["params"]):
            first = seen.setdefault(id(param), (index, position))
            if first != (index, position):
                raise ValueError(
                    f"parameter {position} of param group {index} is also parameter {first[1]} of param group {first[0]}: "
                    "each parameter may be passed once; it would be updated twice per step"
                )


def no_shared_memory(named: Iterable[tuple[Tensor, str]]) -> None:
    """Tensors that are going to be written must not overlap."""
    pair = memory.first_shared(named)
    if pair is not None:
        raise ValueError(
            f"{pair[0]} and {pair[1]} share memory, so a step would update it twice; "
            "tie weights by using one Parameter object in both places"
        )


def state(key: str, value: Tensor | None, param: Tensor, name: str) -> None:
    if value is not None and not shards.is_spread_alike(value, param):
        raise RuntimeError(
            f"the state {key!r} of {name} is {shards.kind(value)}, the parameter is {shards.kind(param)}: they must be spread "
            "alike; load the state with torch.distributed.checkpoint, which shards it anew"
        )
    if value is not None and value.shape != param.shape:
        raise RuntimeError(
            f"the state {key!r} of {name} has shape {tuple(value.shape)}, the parameter has {tuple(param.shape)}; "
            "load a state dict of the same model"
        )


def gradient(param: Tensor, grad: Tensor, name: str) -> None:
    """A gradient that fits its parameter."""
    if shards.is_dtensor(grad) != shards.is_dtensor(param) or (
        shards.is_dtensor(param) and grad.device_mesh != param.device_mesh  # type: ignore[attr-defined]
    ):
        raise RuntimeError(
            f"the gradient of {name} is {shards.kind(grad)}, the parameter is {shards.kind(param)}; both must be DTensors on one "
            "mesh, or none (was one of them exchanged after backward?)"
        )
    if grad.layout != torch.strided:
        raise RuntimeError(
            f"the gradient of {name} has layout {grad.layout}; only dense gradients are supported "
            "(for nn.Embedding, pass sparse=False)"
        )
    for what, of_grad, of_param in (
        ("device", grad.device, param.device),
        ("dtype", grad.dtype, param.dtype),
        ("shape", tuple(grad.shape), tuple(param.shape)),
    ):
        if of_grad != of_param:
            raise RuntimeError(
                f"the gradient of {name} has {what} {of_grad}, the parameter has {of_param}; "
                f"they must agree (was the parameter's data exchanged after backward?)"
            )
    if shards.is_dtensor(grad) and shards.is_spread_alike(grad, param):
        own_grad, own = tuple(shards.held(grad).shape), tuple(shards.held(param).shape)
        if own_grad != own:
            raise RuntimeError(
                f"the gradient of {name}, {shards.kind(grad)}, has {own_grad} of it on this rank, the parameter has {own}; they "
                "must agree (DTensor.from_local takes the whole shape and stride where parts are not of one size)"
            )
