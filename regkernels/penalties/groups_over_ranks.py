"""Computes the penalty on groups of elements in tensors that are cut over ranks: whole on one rank, or cut themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import regkernels.ops  # noqa: F401  (registers torch.ops.regkernels)
from regkernels import reference
from regkernels.distributed.autograd import own
from regkernels.distributed.index import windows_of
from regkernels.distributed.shards import splits_groups, words
from regkernels.dynamo import outside_of_graphs
from regkernels.penalties.over_ranks import Share, over_ranks, shares


@outside_of_graphs
def group_l1(
    listed: Sequence[Tensor], chosen: Sequence[int], strength: float, dim: int | None, size: int, weight: str
) -> Tensor:
    """Computes `regkernels.group_l1_penalty` of the ``chosen`` tensors of ``listed``, of which some are `DTensor`s."""
    found = shares(listed, chosen)
    parts = own(listed, watch=True)
    device = parts[0].device
    is_whole = [not splits_groups(tensor, "tensor" if dim is None else dim, size) for tensor in listed]
    cut = [[index for index in share.listed if not is_whole[index]] for share in found]
    wide = torch.empty((0,) * max(1, *(tensor.dim() for tensor in listed)), dtype=torch.float64, device=device)
    counts = [1 if dim is None or not tensor.dim() else tensor.shape[dim] // size for tensor in listed]

    def compute(share: Share) -> Tensor:
        tensors = [parts[index] for index in share.chosen if is_whole[index]]
        value, _ = torch.ops.regkernels.group_l1([*tensors, wide], strength, dim, size, weight)
        squares = [value.reshape(1)]
        for index in share.listed:
            if not is_whole[index]:
                slots = torch.zeros(counts[index], dtype=torch.float64, device=device)
                if index in share.chosen:
                    slots = slots.index_add(0, *_squares(listed[index], parts[index], dim, size))
                squares.append(slots)
        return torch.cat(squares)

    lengths = [1 + sum(counts[index] for index in indexes) for indexes in cut]
    values = []
    for indexes, total in zip(cut, over_ranks(found, lengths, compute, device), strict=True):
        value, *slots = total.split([1, *(counts[index] for index in indexes)])
        values.append(value[0])
        for index, squares in zip(indexes, slots, strict=True):
            elements = listed[index].numel() // max(counts[index], 1)
            scale = strength * (math.sqrt(elements) if weight == "sqrt_size" else 1.0)
            values.append(scale * _norms(squares, off=strength == 0).sum())
    return torch.stack(values).sum().to(reference.penalty_dtype(listed))


def _squares(tensor: Tensor, part: Tensor, dim: int | None, size: int) -> tuple[Tensor, Tensor]:
    """Finds, of the groups that this rank holds something of, their numbers and the sums of squares of that."""
    squares: Tensor = _SquaredNorms.apply(part, dim)
    if dim is None:
        return torch.zeros(1, dtype=torch.int64, device=part.device), squares
    windows = windows_of(tensor, dim % tensor.dim())
    own_indices = torch.cat([torch.arange(*window, device=part.device) for window in [(0, 0), *windows]])
    if len(own_indices) != part.shape[dim]:
        raise ValueError(
            f"a DTensor of shape {tuple(tensor.shape)} with placements {words(tensor)} has {part.shape[dim]} of dimension {dim} on "
            f"this rank, where torch.chunk would put {len(own_indices)}: which groups these belong to cannot be told"
        )
    return own_indices // size, squares


def _norms(squares: Tensor, off: bool) -> Tensor:
    """Takes roots, with derivative 0 at 0."""
    zero = (squares == 0) | off
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squares).sqrt())


class _SquaredNorms(torch.autograd.Function):
    """Computes the sum of squares at each index of a dimension, or of the whole tensor: float64 (indices,)."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, dim: int | None) -> Tensor:
        ctx.dim = dim
        ctx.save_for_backward(w)
        _, norms = torch.ops.regkernels.group_l1([w], 1.0, dim, 1, "ones")
        return norms * norms  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        """Goes through eager operations, so that it can be differentiated once more."""
        (w,) = ctx.saved_tensors
        wide = reference.compute_dtype(w.dtype)
        factors = (2.0 * upstream).to(wide)
        if ctx.dim is not None:
            factors = factors.reshape([-1 if d == ctx.dim % w.dim() else 1 for d in range(w.dim())])
        return (factors * w.to(wide)).to(w.dtype), None
