"""Checks that models differ in the values of their tensors only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def check_alike(models: Any) -> list[nn.Module]:
    """Returns ``models`` as a list.

    Raises:
        TypeError, ValueError: for what is no sequence of modules, for none, and for one that differs from the first, naming
            the first difference.
    """
    if isinstance(models, nn.Module) and not isinstance(models, nn.ModuleList):
        raise TypeError(
            f"models must be a sequence of modules, got one {type(models).__name__}; pass copies of it: "
            "[copy.deepcopy(model) for _ in range(32)]"
        )
    try:
        listed = list(models)
    except TypeError:
        raise TypeError(f"models must be a sequence of modules, got {type(models).__name__}") from None
    if not listed:
        raise ValueError("models is empty; pass one module or more")
    for index, model in enumerate(listed):
        if not isinstance(model, nn.Module):
            raise TypeError(f"models[{index}] must be a torch.nn.Module, got {type(model).__name__}")
    if not any(param.requires_grad for param in listed[0].parameters()):
        raise ValueError("models have no trainable parameter (requires_grad=True)")
    _check_not_shared(listed)
    first = dict(_described(listed[0]))
    for index, model in enumerate(listed[1:], 1):
        own = dict(_described(model))
        for what in dict.fromkeys([*first, *own]):
            if first.get(what) != own.get(what):
                raise ValueError(
                    f"models[{index}] is built otherwise than models[0]: {what} is {own.get(what, 'missing')}, there it is "
                    f"{first.get(what, 'missing')}; models that are trained together may differ in values of tensors only"
                )
    return listed


def _check_not_shared(models: Sequence[nn.Module]) -> None:
    seen: dict[int, tuple[int, str]] = {}
    for index, model in enumerate(models):
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            where = seen.setdefault(id(tensor), (index, name))
            if where[0] != index:
                raise ValueError(
                    f"models[{index}] and models[{where[0]}] share the tensor {name!r}; each model needs its own: pass copies, "
                    "such as [copy.deepcopy(model) for _ in range(32)]"
                )


def _described(model: nn.Module) -> Iterator[tuple[str, object]]:
    """Lists what has to be the same, each with a name for messages."""
    for name, module in model.named_modules():
        of = f"module {name!r}" if name else "the module"
        yield f"the class of {of}", type(module).__name__
        yield f"the description of {of}", module.extra_repr()
        yield f"training of {of}", module.training
    for kind, named in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in named:
            yield f"{kind} {name!r}", _layout(tensor)


def _layout(tensor: Tensor) -> object:
    if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
        raise ValueError("models have lazy modules without shapes; run a forward pass of each model first")
    strides = tensor.stride() if tensor.layout == torch.strided else None
    return tuple(tensor.shape), strides, tensor.dtype, str(tensor.device), tensor.requires_grad
