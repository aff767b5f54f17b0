"""Keeps the states of a plan's entries: those that can be used stay where they are, others get memory."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regkernels.distributed.shards import held, is_dtensor, spread_like
from regkernels.memory import dense_strides, first_shared, own_storage
from regkernels.optim.step.entry import Entry, real
from regkernels.table.formats import KEPT_DTYPES
from regkernels.transforms import address

_ALIGNMENT = 64

_ALONE = 1 << 20
"""Bytes from which a state has a buffer of its own, and that buffers of several do not outgrow by more than one: what lives keeps
no more of what is gone."""


def fill(entries: Sequence[Entry], initial: Sequence[float]) -> None:
    """Finds or makes the states of entries; those made are in `Entry.made` and nowhere else until they are published.

    What kernels can use stays where it is, whoever put it there; the rest is copied. ``initial``: what Adagrad's sums begin with,
    by param group.
    """
    shared = _shared(entries)
    wanted = [
        (order, entry, name)
        for entry in entries
        for order, name in enumerate(entry.state_names)
        if not entry.can_use(name) or (entry, name) in shared
    ]
    wanted.sort(key=lambda item: item[0])  # all first moments, then all second moments: each run is adjacent
    tensors = make([(entry.param, entry.format.dtype_of(name)) for _, entry, name in wanted])
    for (_, entry, name), tensor in zip(wanted, tensors, strict=True):
        old = entry.state.get(name)
        if old is not None:
            held(tensor).copy_(held(old))
        elif name == "momentum_buffer":
            entry.first = True
        elif name == "sum":
            real(held(tensor)).fill_(initial[entry.group])
        entry.made[name] = tensor
    for entry in entries:
        entry.states = [entry.made[name] if name in entry.made else entry.state[name] for name in entry.state_names]


def _shared(entries: Sequence[Entry]) -> set[tuple[Entry, str]]:
    """Returns the states that have an element in common with a weight, or with a state before them."""
    found: set[tuple[Entry, str]] = set()
    tensors: dict[str, Tensor] = {f"weight {index}": entry.own for index, entry in enumerate(entries)}
    states: dict[str, tuple[Entry, str]] = {}
    for entry in entries:
        for name in entry.state_names:
            if entry.can_use(name):
                key = f"state {len(states)}"
                states[key], tensors[key] = (entry, name), held(entry.state[name])
    while (pair := first_shared((tensor, key) for key, tensor in tensors.items())) is not None:
        one = max(pair, key=lambda key: (key in states, list(tensors).index(key)))
        if one in states:  # else two weights, which somebody else has to see to
            found.add(states[one])
        del tensors[one]
    return found


def make(wanted: Sequence[tuple[Tensor, torch.dtype]]) -> list[Tensor]:
    """Returns zeros of a dtype for each parameter, spread over ranks as it is.

    Those of parameters that are spread lie in memory of their own. They are never adjacent, and a `DTensor` around a view that
    begins within a buffer can neither be pickled nor copied: torch takes its offset for an address.
    """
    together = iter(allocate([(held(param).detach(), dtype) for param, dtype in wanted if not is_dtensor(param)]))
    return [
        spread_like(allocate([(held(param).detach(), dtype)])[0], param) if is_dtensor(param) else next(together)
        for param, dtype in wanted
    ]


def allocate(wanted: Sequence[tuple[Tensor, torch.dtype]]) -> list[Tensor]:
    """Returns zeros of a dtype in the layout of a parameter, small ones one after the other in a buffer per device and dtype.

    They lie in the order given, so that states of parameters which are adjacent in memory are adjacent, too. Others begin at a
    multiple of 64 bytes: behind one of an odd size all would be out of alignment. A parameter that is not dense gets a
    contiguous state. Each is a storage of its own: a copy of one, or its file, is as large as itself.
    """
    keys: list[tuple[torch.device, torch.dtype]] = []  # of each buffer, and its size and what lies before its end
    sizes: list[int] = []
    ends: list[int] = []
    filling: dict[tuple[torch.device, torch.dtype], int] = {}
    places = []
    for param, dtype in wanted:
        key, alone = (param.device, dtype), param.numel() * dtype.itemsize >= _ALONE
        number = filling.get(key)
        if alone or number is None or sizes[number] * dtype.itemsize >= _ALONE:
            number = len(keys)
            keys.append(key)
            sizes.append(0)
            ends.append(0)
            if not alone:
                filling[key] = number
        if address(param) != ends[number]:
            step = _ALIGNMENT // dtype.itemsize
            sizes[number] = (sizes[number] + step - 1) // step * step
        places.append((number, sizes[number]))
        sizes[number] += param.numel()
        ends[number] = address(param) + param.nbytes
    buffers = [torch.zeros(size, dtype=key[1], device=key[0]) for key, size in zip(keys, sizes, strict=True)]
    return [
        _own(buffers[number].as_strided(param.shape, dense_strides(param), begin))
        for (param, _), (number, begin) in zip(wanted, places, strict=True)
    ]


def _own(run: Tensor) -> Tensor:
    """Returns a run of a buffer as a storage of its own, where it has memory."""
    return own_storage(run) if type(run) is Tensor and not run.is_meta else run


def publish(entries: Sequence[Entry], state: MutableMapping[Any, Any]) -> None:
    """Puts what was made for entries into the optimizer's dictionary. Done twice, it is as if it had been done once."""
    for entry in entries:
        entry.state.update(entry.made)
        for name in KEPT_DTYPES.keys() - {entry.format.kept}:
            entry.state.pop(name, None)  # of a run with another rounding; it would be out of date after this step
        if entry.state:
            state[entry.param] = entry.state
