"""Penalties for the loss: one fused pass over all parameters forward, one backward."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import regkernels.ops
import regkernels.value_ops  # noqa: F401  (both register torch.ops.regkernels)
from regkernels import validation
from regkernels.distributed import values
from regkernels.distributed.shards import held, is_dtensor
from regkernels.memory import is_dense

Params = Tensor | Iterable[Tensor] | nn.Module


def l1_penalty(params: Params, strength: float | Tensor, weights: Tensor | Iterable[Tensor] | None = None) -> Tensor:
    """``strength * sum |w|`` over all elements of all parameters. The gradient is ``strength * sign(w)``, sign(0) = 0.

    Args:
        params: a tensor, an iterable of tensors, or a module (its trainable parameters). float64, float32, float16 or
            bfloat16, any shapes and strides, mixed as you like; memory that appears twice counts once. Of a `DTensor` the whole
            tensor counts, and every rank gets its value: call it on all ranks. Not changed.
        strength: >= 0, in units of the loss; a float, or a 0-dim tensor, which gets a gradient, too. ``torch.compile``
            takes a float for a constant and compiles anew for another value: schedule a tensor there.
        weights: of each element, for the adaptive lasso ``strength * sum weight * |w|``: a tensor like each parameter, in the
            order of ``params`` (of a module: its trainable parameters), finite and >= 0, without gradient. 0 leaves an element out. Float
            tensors of the compute type (float32, or float64 for float64 parameters) and in the parameter's memory layout are read as they are, others are
            converted in every call. For a `DTensor` one that is spread alike. Values are checked on the CPU only. Not changed.

    Returns:
        0-dim tensor on the autograd graph; float64 where a parameter is, else float32. Twice differentiable.

    Raises:
        TypeError, ValueError: naming what is not allowed (integer, complex, sparse or partial tensors, no tensors, a strength
            that is negative, infinite or NaN).

    To let weights become exactly zero use ``l1=`` of `regkernels.optim`; a penalty in the loss only makes them small.
    Source of the adaptive lasso: Zou (2006).
    """
    if weights is not None:
        return _weighted(params, strength, weights)
    return _penalty(params, strength, None)


def l2_penalty(params: Params, strength: float | Tensor) -> Tensor:
    """``strength * sum w**2`` over all elements of all parameters, without 1/2: the gradient is ``2 * strength * w``.

    ``weight_decay`` of an optimizer has the 1/2: ``weight_decay = 2 * strength``. Arguments, result and errors as in
    `l1_penalty`.
    """
    return _penalty(params, None, strength)


def elastic_net_penalty(params: Params, l1: float | Tensor, l2: float | Tensor) -> Tensor:
    """``l1 * sum |w| + l2 * sum w**2`` in one pass; no 1/2 before ``l2``. Arguments, result and errors as in `l1_penalty`.

    scikit-learn's ElasticNet(alpha, l1_ratio) has ``l1 = alpha * l1_ratio`` and ``l2 = alpha * (1 - l1_ratio) / 2``.
    Source: Zou and Hastie (2005).
    """
    return _penalty(params, l1, l2)


def _penalty(params: Params, l1: float | Tensor | None, l2: float | Tensor | None) -> Tensor:
    listed = listed_tensors(params)
    names = ("strength", "strength") if l1 is None or l2 is None else ("l1", "l2")
    l1, l2 = (values.strength(name, strength) for name, strength in zip(names, (l1, l2), strict=True))
    for name, strength in zip(names, (l1, l2), strict=True):
        if strength is not None and not torch.compiler.is_compiling():
            validation.nonnegative(name, strength, wait=False)
    function = torch.ops.regkernels.penalty
    if not isinstance(l1, Tensor) and not isinstance(l2, Tensor):
        return evaluated([(function, (float(l1 or 0.0), float(l2 or 0.0)))], listed)[0]
    units = [(strength, unit) for strength, unit in ((l1, (1.0, 0.0)), (l2, (0.0, 1.0))) if strength is not None]
    found = evaluated([(function, unit) for _, unit in units], listed)
    terms = [
        (strength.to(value.dtype).reshape(()) if isinstance(strength, Tensor) else strength) * value
        for (strength, _), value in zip(units, found, strict=True)
    ]
    return terms[0] if len(terms) == 1 else terms[0] + terms[1]


def evaluated(
    calls: Sequence[values.Call], listed: Sequence[Tensor], factors: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """The value of each function for all that is listed, each memory once; ``factors``: one for each tensor."""
    chosen = unique(listed)
    if has_dtensor(listed):
        return values.evaluated(calls, listed, chosen, factors)
    columns = [[listed[index] for index in chosen]]
    if factors is not None:
        columns.append([factors[index] for index in chosen])
    return [function(*columns, *options) for function, options in calls]


def has_dtensor(listed: Sequence[Tensor]) -> bool:
    return "torch.distributed.tensor" in sys.modules and any(is_dtensor(tensor) for tensor in listed)


def _weighted(params: Params, strength: float | Tensor, weights: Tensor | Iterable[Tensor]) -> Tensor:
    listed = listed_tensors(params)
    given = [weights] if isinstance(weights, Tensor) else list(weights)
    if len(given) != len(listed):
        raise ValueError(f"weights has {len(given)} tensors, params has {len(listed)}: pass one for each")
    for index, (tensor, factor) in enumerate(zip(listed, given, strict=True)):
        if not isinstance(factor, Tensor):
            raise TypeError(f"weights[{index}] must be a tensor, got {type(factor).__name__}: {factor!r}")
        if factor.layout != torch.strided or factor.dtype not in validation.WEIGHT_DTYPES:
            raise TypeError(
                f"weights[{index}] must be a dense float64, float32, float16 or bfloat16 tensor, got {factor.layout}, "
                f"{factor.dtype}"
            )
        if factor.shape != tensor.shape or factor.device != tensor.device:
            raise ValueError(
                f"weights[{index}] has shape {tuple(factor.shape)} and is on {factor.device}, params[{index}] has shape "
                f"{tuple(tensor.shape)} and is on {tensor.device}; they must agree"
            )
        values.check_weight(factor, tensor, f"weights[{index}]", f"params[{index}]")
        if factor.requires_grad:
            raise ValueError(f"weights[{index}] requires a gradient, which this penalty does not give: detach() it")
    strength = values.strength("strength", strength)
    if not torch.compiler.is_compiling():
        validation.nonnegative("strength", strength, wait=False)
    weighted = torch.ops.regkernels.weighted_l1
    if isinstance(strength, Tensor):
        return times(strength, evaluated([(weighted, (1.0,))], listed, given)[0])
    return evaluated([(weighted, (float(strength),))], listed, given)[0]


def times(strength: Tensor, value: Tensor) -> Tensor:
    """The product of two tensors of one element each: 0-dim, in the dtype of ``value``."""
    return strength.to(value.dtype).reshape(()) * value


def listed_tensors(params: Any) -> list[Tensor]:
    """What was passed as ``params``, checked."""
    if isinstance(params, nn.Module):
        listed: list[Any] = [param for param in params.parameters() if param.requires_grad]
        if not listed:
            raise ValueError("params: the module has no trainable parameter (requires_grad=True)")
    elif isinstance(params, Tensor):
        listed = [params]
    elif isinstance(params, (str, bytes)) or not isinstance(params, Iterable):
        raise TypeError(f"params must be a tensor, an iterable of tensors or a module, got {type(params).__name__}")
    else:
        listed = list(params)
        if not listed:
            raise ValueError("params is empty: pass at least one tensor (an exhausted generator looks like this)")
    for index, tensor in enumerate(listed):
        _check(tensor, index, listed[0])
    if has_dtensor(listed):
        for index, tensor in enumerate(listed):
            values.check_parameter(tensor, f"params[{index}]")
    return listed


def unique(listed: Sequence[Tensor]) -> list[int]:
    """The places of tensors that make up each memory once; of two with the same, one that requires a gradient."""
    if torch.compiler.is_compiling():
        return _once(listed)  # addresses are not known while tracing, and a guard on id() would recompile in every step
    places: dict[Any, int] = {}
    own = list(map(held, listed)) if has_dtensor(listed) else listed
    for index, tensor in enumerate(listed):
        known = places.setdefault(_memory(own[index]), index)
        if tensor.requires_grad and not listed[known].requires_grad:
            places[_memory(own[index])] = index
    return list(places.values())


def _once(tensors: Sequence[Tensor]) -> list[int]:
    places: list[int] = []
    for index, tensor in enumerate(tensors):
        if not any(tensor is tensors[known] for known in places):
            places.append(index)
    return places


def _memory(tensor: Tensor) -> Any:
    """Equal for tensors that consist of the same elements in memory, in whatever order."""
    if tensor.numel() == 0:
        return id(tensor)
    order = tensor.numel() if is_dense(tensor) else (tensor.shape, tensor.stride())
    return tensor.data_ptr(), tensor.dtype, order


def _check(tensor: Any, index: int, first: Any) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"params[{index}] must be a tensor, got {type(tensor).__name__}: {tensor!r}")
    if tensor.layout != torch.strided:
        raise TypeError(f"params[{index}] has layout {tensor.layout}; penalties take dense tensors only")
    if tensor.dtype not in validation.WEIGHT_DTYPES:
        raise TypeError(f"params[{index}] has dtype {tensor.dtype}; allowed are float64, float32, float16, bfloat16")
    if tensor.device != first.device:
        raise ValueError(
            f"params[{index}] is on {tensor.device}, params[0] on {first.device}; sum the penalties of each device"
        )
