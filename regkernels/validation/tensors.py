"""Checks tensors: parameters, their gradients and states, and weights of their elements."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from regkernels import memory, transforms
from regkernels.distributed import shards
from regkernels.reference import RULES
from regkernels.table.formats import Precision
from regkernels.validation.options import may_be_positive

WEIGHT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def is_trained(param: Tensor) -> bool:
    """Tells whether a step may ever look at a parameter as it is. Frozen ones may be anything: quantised, sparse, expanded."""
    # Within a transform of torch.func nothing requires a gradient that is outside of it.
    return param.requires_grad or transforms.is_wrapped(param) or param.grad is not None


def parameter(param: Tensor, name: str) -> None:
    """Raises unless an optimizer can update a tensor in place."""
    if isinstance(param, torch.nn.UninitializedParameter):
        return  # checked once a forward pass has given it a shape
    if shards.is_dtensor(param):
        shards.check_parameter(param, name)
        param = shards.held(param)
    elif is_traceable_wrapper_subclass(param):
        raise TypeError(
            f"{name} is a {type(param).__name__}, which has no memory of its own to update; pass its local tensor"
        )
    if transforms.is_wrapped(param):
        raise TypeError(
            f"{name} belongs to a transform of torch.func, where it stands for other tensors and has no memory to update; make "
            "the optimizer of plain tensors, and its steps outside of the transform"
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


def check_memory(tensor: Tensor, name: str) -> None:
    """Raises where a tensor's storage is smaller than what its shape, strides and offset reach."""
    if not memory.has_memory(tensor):
        raise RuntimeError(
            f"{name} of shape {tuple(tensor.shape)} has no memory any more: it reaches over {memory.reach(tensor)} bytes of its storage, "
            f"which has {tensor.untyped_storage().nbytes()}. It was freed (by untyped_storage().resize_, as wrappers do that shard or "
            "offload between uses): let them bring it back before, or pass a tensor of its own"
        )


def addressable(tensor: Tensor, name: str) -> None:
    """Raises unless the elements of a tensor are in memory, where kernels can reach them."""
    # Of the first, the choice of a backend says more; the second are not computed with.
    if tensor.is_meta or transforms.is_fake(tensor) or tensor.numel() == 0:
        return
    check_memory(tensor, name)
    if not tensor.data_ptr():
        remedy = (
            "pass a clone() of it"
            if tensor._is_zerotensor()
            else "pass the plain tensor that it stands for, or make one of it"
        )
        raise TypeError(f"{name} is a {type(tensor).__name__} that has no memory of its own: {remedy}")


def complex_parameter(param: Tensor, l1: float | Tensor, rule: str, name: str) -> None:
    """Raises where a parameter is complex and its rule or its ``l1`` takes real ones."""
    if param.is_complex() and RULES[rule].of_signs:
        raise ValueError(
            f"{name} is complex: {rule.capitalize()} takes signs, which complex numbers have not; choose another optimizer"
        )
    if param.is_complex() and may_be_positive(l1):
        raise ValueError(
            f"{name} is complex and its l1 is {l1}: an L1 penalty is defined for real parameters only; "
            "put complex parameters into a group with l1=0"
        )


def precision(asked: Precision, param: Tensor, name: str) -> None:
    """Raises where a parameter cannot be rounded or have states as ``asked``."""
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


def l1_weight(weight: Any, param: Tensor, name: str, of: str) -> None:
    """Raises unless ``weight`` can weigh the l1 of each element of ``param``, which messages call ``of``."""
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
            f"{name} is {shards.described(weight)}, {of} is {shards.described(param)}: they must be spread alike; make it with "
            "torch.distributed.tensor.distribute_tensor(weight, param.device_mesh, param.placements), or detach() it"
        )
    weight = shards.held(weight)
    if not transforms.hides(weight):
        addressable(weight, name)
    if weight.is_inference():
        raise ValueError(
            f"{name} was made under torch.inference_mode(), where changes leave no trace; pass a clone of it, or use "
            "torch.no_grad()"
        )
    weight = transforms.innermost(weight)
    if weight.is_cpu and not transforms.unreadable(weight) and not bool((weight >= 0).all()):
        raise ValueError(f"{name} must be >= 0 everywhere (for {of}), got a minimum of {weight.min().item()}")


def one_device(params: Sequence[Tensor], index: int) -> torch.device | None:
    """Returns the device of a param group, None where it is empty; raises where its parameters are on several."""
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
    """Raises where a parameter stands twice in param groups."""
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
    """Raises where tensors that are going to be written overlap."""
    pair = memory.first_shared(named)
    if pair is not None:
        raise ValueError(
            f"{pair[0]} and {pair[1]} share memory, so a step would update it twice; "
            "tie weights by using one Parameter object in both places"
        )


def state(key: str, value: Tensor | None, param: Tensor, name: str) -> None:
    """Raises where a state does not fit its parameter; None fits."""
    if value is not None and not shards.is_spread_alike(value, param):
        raise RuntimeError(
            f"the state {key!r} of {name} is {shards.described(value)}, the parameter is {shards.described(param)}: they must be spread "
            "alike; load the state with torch.distributed.checkpoint, which shards it anew"
        )
    if value is not None:
        addressable(shards.held(value), f"the state {key!r} of {name}")
    if value is not None and value.shape != param.shape:
        raise RuntimeError(
            f"the state {key!r} of {name} has shape {tuple(value.shape)}, the parameter has {tuple(param.shape)}; "
            "load a state dict of the same model"
        )


def step_count(value: Any, name: str) -> None:
    """Raises unless ``value`` can be how many steps a parameter has made; None is none. Waits for a device that it is on."""
    if value is None:
        return
    what = f"the state 'step' of {name}"
    if shards.is_dtensor(value):
        raise TypeError(
            f"{what} must be a plain tensor or a number, got {shards.described(value)}; call full_tensor() on it"
        )
    if isinstance(value, Tensor) and (value.numel() != 1 or value.is_complex() or value.is_meta):
        raise TypeError(
            f"{what} must be one real number, got a {value.dtype} tensor of shape {tuple(value.shape)} on {value.device}"
        )
    if not isinstance(value, (Tensor, numbers.Real)):
        raise TypeError(f"{what} must be a number or a tensor of one, got {type(value).__name__}: {repr(value)[:60]}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    # Beyond 2**53 the next number is none of float64's.
    if not (0 <= number < 2**53 and number == int(number)):
        raise ValueError(
            f"{what} must be a count of steps, got {number}; set it to a whole number in [0, 2**53), or load a checkpoint that is "
            "not damaged"
        )


def gradient(param: Tensor, grad: Tensor, name: str) -> None:
    """Raises where a gradient does not fit its parameter."""
    if transforms.is_wrapped(grad):
        raise RuntimeError(
            f"the gradient of {name} belongs to a transform of torch.func, where it stands for other tensors and has no memory; "
            "return gradients from the transform, and make the step outside of it"
        )
    if shards.is_dtensor(grad) != shards.is_dtensor(param) or (
        shards.is_dtensor(param) and grad.device_mesh != param.device_mesh  # type: ignore[attr-defined]
    ):
        raise RuntimeError(
            f"the gradient of {name} is {shards.described(grad)}, the parameter is {shards.described(param)}; both must be DTensors on one "
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
                f"the gradient of {name}, {shards.described(grad)}, has {own_grad} of it on this rank, the parameter has {own}; they "
                "must agree (DTensor.from_local takes the whole shape and stride where parts are not of one size)"
            )
    if not grad._is_zerotensor():  # which is zeros, and copied
        addressable(shards.held(grad), f"the gradient of {name}")
