"""Optimizer states: allocated flat, viewed per parameter under torch's names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_ALIGNMENT = 64


def has_layout(tensor: Tensor, like: Tensor) -> bool:
    """Whether element i of the one lies at the same offset as element i of the other."""
    if tensor.shape != like.shape:
        return False
    if tensor.numel() == 0:
        return True
    sizes = zip(like.shape, tensor.stride(), like.stride(), strict=True)
    return all(ours == theirs for size, ours, theirs in sizes if size > 1)


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one run of memory, in any order of dimensions, each element once."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(
        (stride, size) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size != 1
    ):
        if stride != expected:
            return False
        expected *= size
    return True


def dense_strides(tensor: Tensor) -> tuple[int, ...]:
    """Strides of a copy without gaps: the tensor's own where it is dense, else those of a contiguous one."""
    return tensor.stride() if is_dense(tensor) else torch.empty(tensor.shape, device="meta").stride()


def allocate(wanted: Sequence[tuple[Tensor, torch.dtype]]) -> list[Tensor]:
    """Zeros of a dtype in the layout of a parameter, one after the other in one buffer per device and dtype.

    In the order given, so that states of parameters which are adjacent in memory are adjacent, too. Others begin at a
    multiple of 64 bytes: behind one of an odd size all would be out of alignment. A parameter that is not dense gets a
    contiguous state.
    """
    sizes: dict[tuple[torch.device, torch.dtype], int] = {}
    offsets = []
    ends: dict[tuple[torch.device, torch.dtype], int] = {}
    for param, dtype in wanted:
        key = (param.device, dtype)
        offset = sizes.get(key, 0)
        if param.data_ptr() != ends.get(key):
            step = _ALIGNMENT // dtype.itemsize
            offset = (offset + step - 1) // step * step
        offsets.append(offset)
        sizes[key] = offset + param.numel()
        ends[key] = param.data_ptr() + param.nbytes
    buffers = {key: torch.zeros(size, dtype=key[1], device=key[0]) for key, size in sizes.items()}
    return [
        torch.as_strided(buffers[param.device, dtype], param.shape, dense_strides(param), offset)
        for (param, dtype), offset in zip(wanted, offsets, strict=True)
    ]
