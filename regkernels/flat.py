"""Moves parameters and gradients into contiguous buffers, and finds these again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import TensorWeakRef, WeakIdKeyDictionary

from regkernels import transforms, validation
from regkernels.distributed import sharded
from regkernels.dynamo import outside_of_graphs
from regkernels.memory import dense_strides, own_storage

_WITHOUT = (
    "leave FlatParameters out: what spreads parameters keeps the memory of each rank's parts itself, and exchanges it"
)
_ALIGNMENT = 64
"""Bytes. A tensor whose size is a multiple leaves its successor aligned, so odd-sized tensors are placed last."""


class FlatParameters:
    """Moves parameters and their gradients into contiguous buffers, one pair per dtype and device.

    The parameters stay the user's objects: only the memory behind them moves into the buffers. Each parameter is a storage of
    its own there, so files of the model are what they were; ``param.grad`` is a view. A step then works on one segment per param group
    instead of one per tensor, which pays for models of many small tensors.

    Args:
        module_or_params: a module, an iterable of tensors or (name, tensor) pairs, or an iterable of param groups (dicts,
            as `regkernels.param_groups` makes them). Only trainable parameters are moved. Parameters of one group are
            placed side by side; without groups, those with two and more dimensions come before the others.

    Attributes:
        weights: the buffers of the parameters, 1-D.
        gradients: the buffers of the gradients, 1-D, as long as `weights`.

    After construction every parameter has a gradient: zeros where it was None, so a parameter that takes no part in
    the loss is stepped with a zero gradient instead of being skipped. ``optimizer.zero_grad()`` of a regkernels optimizer,
    like `zero_grad` here, zeroes the buffers in place. ``module.zero_grad()`` and optimizers of torch set gradients to
    None; backward then allocates them one by one and the step, still right, takes them one by one.

    Do this before the optimizer is made or at any time between steps; again after ``module.to(...)``, which moves every
    parameter to memory of its own. Under ``torch.__future__.set_swap_module_params_on_conversion(True)`` convert the module before:
    torch swaps no tensors that have weak references, by which an instance knows its parameters, and raises "Couldn't swap".

    Raises:
        TypeError, ValueError: for what is no parameter, for parameters that share memory or are spread over ranks (`DTensor`,
            FSDP's), for an empty list; nothing is moved then.
    """

    created = 0  # number of instances so far; tells optimizers when to look for owners again

    def __init__(self, module_or_params: nn.Module | Iterable[Any]) -> None:
        sharded.check_whole_model(module_or_params, _WITHOUT)
        ordered = _ordered(module_or_params)
        _check([param for _, param in ordered])
        by_buffer: dict[tuple[torch.device, torch.dtype], list[tuple[int, Tensor]]] = {}
        for order, param in ordered:
            by_buffer.setdefault((param.device, param.dtype), []).append((order, param))
        self.weights: list[Tensor] = []
        self.gradients: list[Tensor] = []
        self._views: list[tuple[TensorWeakRef, Tensor, int, int]] = []
        for (device, dtype), members in by_buffer.items():
            members.sort(key=lambda member: (member[1].nbytes % _ALIGNMENT != 0, member[0]))
            size = sum(param.numel() for _, param in members)
            self.weights.append(torch.empty(size, dtype=dtype, device=device))
            self.gradients.append(torch.zeros(size, dtype=dtype, device=device))
            self._move([param for _, param in members])
        FlatParameters.created += 1

    def _move(self, params: list[Tensor]) -> None:
        """Moves parameters and their gradients into the latest pair of buffers."""
        weights, gradients = self.weights[-1], self.gradients[-1]
        offset = 0
        for param in params:
            strides = dense_strides(param)
            weight = own_storage(weights[offset : offset + param.numel()]).as_strided(param.shape, strides)
            gradient = gradients.as_strided(param.shape, strides, offset)
            with torch.no_grad():
                weight.copy_(param)
                if param.grad is not None:
                    gradient.copy_(param.grad)
            param.data = weight
            param.grad = gradient
            self._views.append(
                (TensorWeakRef(param), gradient, transforms.address(weight), transforms.address(gradient))
            )
            _owners[param] = self
            offset += param.numel()

    @outside_of_graphs
    def zero_grad(self, params: Iterable[Tensor] | None = None) -> None:
        """Zeroes gradients in place and makes them views of the buffers again, where something replaced them.

        Args:
            params: only those of these; default: all.

        Raises:
            RuntimeError: where the memory of a parameter or gradient has been exchanged since, as ``module.to`` does.
        """
        chosen = None if params is None else set(map(id, params))
        views = []
        for reference, view, weight, gradient in self._views:
            param = reference()
            if param is None or (chosen is not None and id(param) not in chosen):
                continue
            if transforms.address(param) != weight or transforms.address(view) != gradient or param.shape != view.shape:
                raise RuntimeError(
                    f"a parameter of shape {tuple(param.shape)}, {param.dtype}, {param.device} is no longer in the buffers "
                    "of its FlatParameters: make a new FlatParameters after module.to(...) or an assignment to param.data"
                )
            views.append((param, view))
        if len(views) == len(self._views):
            for buffer in self.gradients:
                buffer.zero_()
        else:
            for _, view in views:
                view.zero_()
        for param, view in views:
            if param.grad is not view:
                param.grad = view

    @staticmethod
    def owner(param: Tensor) -> FlatParameters | None:
        """Returns the latest instance that moved ``param``, or None."""
        return _owners.get(param)  # type: ignore[no-any-return]

    @staticmethod
    def buffer(param: Tensor) -> Tensor | None:
        """Returns the buffer that the memory of ``param`` lies in, or None."""
        flat, address = FlatParameters.owner(param), param.data_ptr()
        for weights in () if flat is None else flat.weights:
            if weights.data_ptr() <= address < weights.data_ptr() + weights.nbytes:
                return weights
        return None

    def __repr__(self) -> str:
        buffers = ", ".join(f"{len(w):,} x {str(w.dtype).removeprefix('torch.')} on {w.device}" for w in self.weights)
        return f"FlatParameters({len(self._views)} parameters: {buffers})"


# Weak in the parameters, and instances know theirs weakly: a model that is dropped frees its buffers.
_owners = WeakIdKeyDictionary()


def _ordered(module_or_params: Any) -> list[tuple[int, Tensor]]:
    """Returns trainable parameters, each once, with what they are ordered by: their param group, or their dimensions."""
    if isinstance(module_or_params, nn.Module):
        listed: list[tuple[int, Tensor]] = [(int(p.dim() < 2), p) for p in module_or_params.parameters()]
    else:
        if isinstance(module_or_params, (str, bytes, Tensor)) or not isinstance(module_or_params, Iterable):
            raise TypeError(
                f"module_or_params must be a module, an iterable of tensors or of param groups, got "
                f"{type(module_or_params).__name__}; put a single tensor into a list"
            )
        listed = []
        for index, item in enumerate(module_or_params):
            if isinstance(item, Mapping):
                if "params" not in item:
                    raise ValueError(f"param group {index} has no key 'params', only {sorted(item)}")
                params = item["params"]
                listed += [(index, _tensor(param)) for param in ([params] if isinstance(params, Tensor) else params)]
            else:
                param = _tensor(item)
                listed.append((int(param.dim() < 2), param))
    unique = {id(param): (order, param) for order, param in listed if param.requires_grad}
    return list(unique.values())


def _tensor(item: Any) -> Tensor:
    tensor = item[1] if isinstance(item, tuple) and len(item) == 2 else item
    if not isinstance(tensor, Tensor):
        raise TypeError(f"module_or_params must contain tensors or param groups, got {type(tensor).__name__}: {item!r}")
    return tensor


def _check(params: list[Tensor]) -> None:
    """Raises where parameters cannot be moved."""
    if not params:
        raise ValueError("module_or_params has no trainable parameter (requires_grad=True)")
    for index, param in enumerate(params):
        name = f"tensor {index} of shape {tuple(param.shape)}"
        sharded.check_whole(param, name, _WITHOUT)
        validation.parameter(param, name)
        if param.is_meta:
            raise TypeError(f"{name} is on the meta device and has no memory; materialise the model first (to_empty)")
        if not param.is_leaf:
            raise ValueError(f"{name} is not a leaf: it was computed from other tensors; pass model.parameters()")
        if param.grad is not None:
            validation.gradient(param, param.grad, name)
    validation.no_shared_memory((param, f"tensor {index}") for index, param in enumerate(params))


class Owners:
    """Knows which instances own the parameters of an optimizer; looks anew when those, or the instances, have changed."""

    def __init__(self) -> None:
        self._key: Any = None
        self._flats: list[FlatParameters] = []
        self._others: list[Tensor] = []

    def zero_grad(self, params: Sequence[Tensor], set_to_none: bool) -> bool:
        """Resets gradients, those of a `FlatParameters` in place. False where there is none: nothing is done then."""
        key = (FlatParameters.created, list(map(id, params)))
        if key != self._key:
            owners = [FlatParameters.owner(param) for param in params]
            self._flats = list({id(flat): flat for flat in owners if flat is not None}.values())
            self._others = [param for param, flat in zip(params, owners, strict=True) if flat is None]
            self._key = key
        for flat in self._flats:
            flat.zero_grad(params)
        if not self._flats:
            return False
        for param in self._others:
            if param.grad is not None:
                param.grad = None if set_to_none else param.grad.detach().zero_()
        return True
