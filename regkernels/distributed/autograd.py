"""Goes from whole tensors to what each rank holds of them and back, and sums over ranks: differentiable at will.

What is computed from sums is the same on every rank, and every rank goes through its own backward pass. So the gradient
of a sum is handed on as it is, without a message; only the derivative of that, by what came from above, is a sum again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from regkernels.distributed.shards import held, is_dtensor, spread_as, spread_like

ProcessGroups = dict[str, Any]
"""Process groups by name: those of the dimensions of a mesh that something is cut over."""


def own(tensors: Sequence[Tensor], *, watch: bool = False) -> list[Tensor]:
    """Returns what this rank holds of each; gradients become `DTensor`s like the tensor. Plain tensors are taken as they are.

    ``watch``: the backward pass raises where tensors were changed in place in the meantime. Autograd looks only at what is saved,
    this rank's memory, whose version counter stands still when the `DTensor` around it is changed.
    """
    spread = [tensor for tensor in tensors if is_dtensor(tensor)]
    parts = iter(_Own.apply(watch, *spread) if spread else ())
    return [next(parts) if is_dtensor(tensor) else tensor for tensor in tensors]


def whole(parts: Sequence[Tensor], likes: Sequence[Tensor]) -> list[Tensor]:
    """Returns each part as what this rank holds of a `DTensor` that is spread as its like is: the inverse of `own`."""
    return list(_Whole.apply(tuple(likes), *parts))


def summed(vectors: Sequence[Tensor], over: Sequence[ProcessGroups]) -> list[Tensor]:
    """Sums each 1-D vector over its process groups, in one message per process group."""
    return list(_Sum.apply(tuple(over), *vectors))


def shared(tensor: Tensor, over: ProcessGroups) -> Tensor:
    """Returns ``tensor``, equal on all ranks, for what each of them computes from it: gradients are summed over ``over``."""
    return _Share.apply((over,), tensor.reshape(1))[0].reshape(tensor.shape)  # type: ignore[no-any-return]


class _Own(torch.autograd.Function):
    """Takes what this rank holds of tensors that are all spread; gradients are put into `DTensor`s again."""

    @staticmethod
    def forward(ctx: Any, watch: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.likes = tensors
        ctx.versions = _versions(tensors) if watch else None
        ctx.set_materialize_grads(False)
        # Not the memory's own tensor object: autograd writes into what is returned. It shares the version counter.
        return tuple(held(tensor).detach() for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.versions is not None and ctx.versions != _versions(ctx.likes):
            raise RuntimeError(
                "one of the parameters of a penalty has been modified by an inplace operation, such as optimizer.step(), between the "
                "penalty and its backward pass, whose gradients would be wrong; call backward() before, or compute the penalty again"
            )
        return None, *_present(
            lambda *those: _Whole.apply(tuple(like for like, _ in those), *(g for _, g in those)), ctx, gradients
        )


class _Whole(torch.autograd.Function):
    """Puts parts into `DTensor`s; of their gradients each rank takes what it holds."""

    @staticmethod
    def forward(ctx: Any, likes: tuple[Tensor, ...], *parts: Tensor) -> tuple[Tensor, ...]:
        ctx.likes = likes
        ctx.set_materialize_grads(False)
        return tuple(spread_like(part.detach(), like) for part, like in zip(parts, likes, strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *_present(
            lambda *those: _Own.apply(False, *(spread_as(g, like) for like, g in those)), ctx, gradients
        )


def _versions(tensors: Sequence[Tensor]) -> list[int]:
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


def _present(function: Any, ctx: Any, gradients: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Applies ``function`` to pairs (like, gradient), for the gradients that there are; None stands for the others."""
    pairs = [(like, g) for like, g in zip(ctx.likes, gradients, strict=True) if g is not None]
    found = iter(function(*pairs) if pairs else ())
    return tuple(None if g is None else next(found) for g in gradients)


class _Sum(torch.autograd.Function):
    """Sums vectors; their gradients are handed on as they are."""

    @staticmethod
    def forward(ctx: Any, over: tuple[ProcessGroups, ...], *vectors: Tensor) -> tuple[Tensor, ...]:
        ctx.over = over
        return tuple(_all_reduced(vectors, over))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return None, *_Share.apply(ctx.over, *gradients)


class _Share(torch.autograd.Function):
    """Hands vectors on as they are; their gradients are summed."""

    @staticmethod
    def forward(ctx: Any, over: tuple[ProcessGroups, ...], *vectors: Tensor) -> tuple[Tensor, ...]:
        ctx.over = over
        return tuple(vector.detach() for vector in vectors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return None, *_Sum.apply(ctx.over, *gradients)


def _all_reduced(vectors: Sequence[Tensor], over: Sequence[ProcessGroups]) -> list[Tensor]:
    """Returns sums of the vectors over their process groups, all that go over one of these in one message."""
    totals = [vector.detach().clone() for vector in vectors]
    named = {name: process_group for those in over for name, process_group in those.items()}
    for name, process_group in named.items():
        members = [index for index, those in enumerate(over) if name in those]
        message = torch.cat([totals[index] for index in members])
        message = _reduced(message, process_group)
        for index, part in zip(members, message.split([len(totals[index]) for index in members]), strict=True):
            totals[index] = part.clone()
    return totals


def _reduced(message: Tensor, process_group: Any) -> Tensor:
    """Returns the sum over a process group, whose backend may know accelerators only where parameters are kept on the host."""
    devices = [device.type for device in process_group._device_types]
    if message.device.type in devices:
        distributed.all_reduce(message, group=process_group)
        return message
    carried = message.to(devices[0])
    distributed.all_reduce(carried, group=process_group)
    return carried.to(message.device)
