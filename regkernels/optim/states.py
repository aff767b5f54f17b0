"""Optimizer states: allocated flat, viewed per parameter under torch's names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regkernels.memory import dense_strides

_ALIGNMENT = 64


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
