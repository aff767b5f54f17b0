"""Tensors that say they lie on a device. Their memory is that of a tensor on the CPU, and its address theirs."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from tests.support.simulated.simulation import Simulation
from tests.support.simulated.streams import Stream, Wait


class Block:
    """Memory of a device, which is free for another use on the stream that allocated it when the last tensor in it is gone."""

    def __init__(self, simulation: Simulation, memory: Tensor, device: int) -> None:
        self.device = device
        self.used_on: list[Stream] = []
        if simulation.recording is None:  # memory of a graph stays its own
            stream = simulation.current[device]
            weakref.finalize(self, _free, simulation, memory, stream, self.used_on).atexit = False


def _free(simulation: Simulation, memory: Tensor, stream: Stream, used_on: list[Stream]) -> None:
    for other in used_on:
        stream.queue.append(Wait(other.mark()))
    simulation.give(lambda: spoil(memory), stream)


def spoil(memory: Tensor) -> None:
    """Overwrites memory, as whoever uses it next does. Addresses become 0, and no segment has an element."""
    with torch.no_grad():
        memory.fill_(float("nan") if memory.is_floating_point() or memory.is_complex() else 0)


class OnDevice(Tensor):
    """Stands for a tensor on ``cuda:N``.

    Attributes:
        memory: the tensor on the CPU.
        block: what it is a part of.
    """

    memory: Tensor
    block: Block
    simulation: Simulation

    @staticmethod
    def __new__(cls, memory: Tensor, block: Block, simulation: Simulation) -> OnDevice:
        device = torch.device("cuda", block.device)
        own = Tensor._make_subclass(cls, memory, False, dispatch_device=True, device_for_backend_keys=device)
        own.memory, own.block, own.simulation = memory, block, simulation
        return own

    @classmethod
    def fresh(cls, memory: Tensor, device: int, simulation: Simulation) -> OnDevice:
        """In memory that was allocated for it."""
        return cls(memory, Block(simulation, memory, device), simulation)

    def record_stream(self, stream: Stream) -> None:
        self.block.used_on.append(stream)

    def tolist(self) -> Any:
        """What torch does for no class but its own."""
        self.simulation.wait("tolist", self.block.device)
        return self.memory.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from tests.support.simulated.dispatch import dispatch  # which works with these

        own = next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, OnDevice))
        return dispatch(own.simulation, func, args, kwargs or {})

    def __repr__(self, **_: object) -> str:
        return f"OnDevice({self.memory!r}, cuda:{self.block.device})"


def unwrapped(tree: Any) -> Any:
    """The same with the CPU's tensors."""
    return tree_map(lambda leaf: leaf.memory if isinstance(leaf, OnDevice) else leaf, tree)


def on_host(tree: Any) -> Any:
    """Copies of tensors as they are when all is done, on the CPU."""

    def copied(leaf: Any) -> Any:
        if not isinstance(leaf, OnDevice):
            return leaf
        leaf.simulation.synchronize()
        return leaf.memory.clone()

    return tree_map(copied, tree)
