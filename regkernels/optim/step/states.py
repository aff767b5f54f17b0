"""Keeps the states of a plan's entries: allocates those that are missing, a view each of a flat buffer, and adopts the others."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regkernels.distributed.shards import held, is_dtensor, spread_like
from regkernels.memory import dense_strides
from regkernels.optim.step.counts import Counts
from regkernels.optim.step.entry import Entry, real
from regkernels.table import segments
from regkernels.table.formats import KEPT_DTYPES

_ALIGNMENT = 64


def fill(entries: Sequence[Entry], initial: Sequence[float], *, move: bool) -> None:
    """Creates missing states, all at once; adopts the others, copying where their memory cannot be used as it is.

    ``initial``: what Adagrad's sums begin with, by param group. ``move`` copies all states into fresh flat buffers.
    """
    wanted: list[tuple[int, Entry, str]] = []
    for entry in entries:
        for name in KEPT_DTYPES.keys() - {entry.format.kept}:
            entry.state.pop(name, None)  # of a run with another rounding; it would be out of date after this step
        for order, name in enumerate(entry.state_names):
            if move or not entry.can_use(name):
                wanted.append((order, entry, name))
    wanted.sort(key=lambda item: item[0])  # all first moments, then all second moments: each run is adjacent
    tensors = _allocated([(entry, entry.format.dtype_of(name)) for _, entry, name in wanted])
    for (_, entry, name), tensor in zip(wanted, tensors, strict=True):
        old = entry.state.get(name)
        if old is not None:
            tensor.copy_(held(old))
        elif name == "momentum_buffer":
            entry.first = True
        elif name == "sum":
            real(tensor).fill_(initial[entry.group])
        entry.state[name] = spread_like(tensor, entry.param)


def _allocated(wanted: Sequence[tuple[Entry, torch.dtype]]) -> list[Tensor]:
    """Allocates states; those of parameters that are spread over ranks lie in memory of their own.

    These are never adjacent, and a `DTensor` around a view that begins within a buffer can neither be pickled nor copied:
    torch takes its offset for an address.
    """
    together = iter(allocate([(entry.own, dtype) for entry, dtype in wanted if not is_dtensor(entry.param)]))
    return [allocate([(entry.own, dtype)])[0] if is_dtensor(entry.param) else next(together) for entry, dtype in wanted]


def allocate(wanted: Sequence[tuple[Tensor, torch.dtype]]) -> list[Tensor]:
    """Returns zeros of a dtype in the layout of a parameter, one after the other in one buffer per device and dtype.

    They lie in the order given, so that states of parameters which are adjacent in memory are adjacent, too. Others begin at a
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


def publish(entries: Sequence[Entry], state: MutableMapping[Any, Any]) -> None:
    """Puts the entries' states into the optimizer's dictionary."""
    for entry in entries:
        if entry.state:
            state[entry.param] = entry.state
        entry.states = [entry.state[name] for name in entry.state_names]


def are_ours(entries: Sequence[Entry], state: MutableMapping[Any, Any], table: Tensor, counts: Counts | None) -> bool:
    """Tells whether the dictionary still holds these entries' tensors, where ``table`` says, and the counts it expects."""
    for entry, addresses in zip(entries, table.tolist(), strict=True):
        if entry.state and state.get(entry.param) is not entry.state:
            return False
        columns = range(segments.STATE0, segments.STATE0 + len(entry.states))
        for name, tensor, column in zip(entry.state_names, entry.states, columns, strict=True):
            address = addresses[segments.KEPT if name == entry.format.kept else column]
            if entry.state.get(name) is not tensor or held(tensor).data_ptr() != address:
                return False
    if counts is None:
        return True
    steps = [entry.state.get("step") for entry in entries]
    return all(isinstance(s, Tensor) and s.data_ptr() == counts.address(i) for i, s in enumerate(steps))
