"""Holds what all penalties in the loss share: the tensors they are given, each memory once, and the sum over all of them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regkernels import transforms, validation
from regkernels.distributed.autograd import own
from regkernels.distributed.shards import check_parameter, held, is_dtensor, words
from regkernels.memory import is_dense
from regkernels.ops.library import check_memory
from regkernels.penalties import over_ranks

Params = Tensor | Iterable[Tensor] | nn.Module


def listed_tensors(params: Any) -> list[Tensor]:
    """Checks what was passed as ``params`` and lists its tensors."""
    if isinstance(params, nn.Module):
        listed: list[Any] = [param for _, param in trainable(params)]
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
            check_parameter(tensor, f"params[{index}]")
    return listed


def trainable(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Lists the parameters that take part: those that require a gradient.

    What torch.func.functional_call has put in a parameter's place is none, and takes part, too: it may have a tangent instead.
    """
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad or not isinstance(p, nn.Parameter)]


def unique(listed: Sequence[Tensor]) -> list[int]:
    """Finds the places of tensors that make up each memory once; of two with the same, one that requires a gradient."""
    if torch.compiler.is_compiling() or any(map(transforms.hides, listed)):
        return _once(listed)  # addresses are not known while tracing, and a guard on id() would recompile in every step
    places: dict[Any, int] = {}
    own = list(map(held, listed)) if has_dtensor(listed) else listed
    for index, tensor in enumerate(listed):
        memory = _memory(own[index], index)
        known = places.setdefault(memory, index)
        if tensor.requires_grad and not listed[known].requires_grad:
            places[memory] = index
    return list(places.values())


def _once(tensors: Sequence[Tensor]) -> list[int]:
    places: list[int] = []
    for index, tensor in enumerate(tensors):
        if not any(tensor is tensors[known] for known in places):
            places.append(index)
    return places


def _memory(tensor: Tensor, index: int) -> Any:
    """Returns a key that is equal for tensors that consist of the same elements in memory, in whatever order."""
    address = tensor.data_ptr()
    if not address:  # empty, on the meta device, or freed
        if not tensor.is_meta:
            check_memory(tensor, f"params[{index}]")
        return id(tensor)
    order = tensor.numel() if is_dense(tensor) else (tensor.shape, tensor.stride())
    return address, tensor.dtype, order


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


def plain_strength(name: str, value: Any) -> Any:
    """Returns a strength as a plain number or tensor; raises for a `DTensor` whose value not every rank has."""
    if not is_dtensor(value):
        return value
    if not all(placement.is_replicate() for placement in value.placements):
        raise ValueError(
            f"{name} is a DTensor with placements {words(value)}, of which not every rank has the value; pass "
            f"{name}.full_tensor()"
        )
    return own([value])[0]


def evaluated(
    calls: Sequence[over_ranks.Call], listed: Sequence[Tensor], factors: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """Computes the value of each function for all that is listed, each memory once; ``factors``: one for each tensor."""
    chosen = unique(listed)
    if has_dtensor(listed):
        return over_ranks.evaluated(calls, listed, chosen, factors)
    columns = [[listed[index] for index in chosen]]
    if factors is not None:
        columns.append([factors[index] for index in chosen])
    return [function(*columns, *options) for function, options in calls]


def has_dtensor(listed: Sequence[Tensor]) -> bool:
    return "torch.distributed.tensor" in sys.modules and any(is_dtensor(tensor) for tensor in listed)


def times(strength: Tensor, value: Tensor) -> Tensor:
    """Returns the product of two tensors of one element each: 0-dim, in the dtype of ``value``."""
    return strength.to(value.dtype).reshape(()) * value
