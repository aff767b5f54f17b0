"""Knows which weights are shrunk after a step, and where they and what their metric is computed from lie in memory.

There is one `Shrinkage` per device. It keeps the table of addresses and the buffers of what cannot be used where it lies, as long
as the same memory is handed in; nothing is cached by the identity of a tensor.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regkernels import backends, transforms, validation
from regkernels.distributed.shards import described, held, is_dtensor, is_spread_alike
from regkernels.memory import empty_dense, has_layout, is_usable
from regkernels.optim.step.entry import parameter_name
from regkernels.reference.kinds import MetricKind
from regkernels.table import segments
from regkernels.table.batch import Batch, Memory, Operands
from regkernels.table.hyper import Hyper
from regkernels.table.segments import Segment


class Item(NamedTuple):
    """Names one weight of a step, as the optimizer has it, and what it is shrunk by."""

    param: Tensor
    group: Mapping[str, Any]
    place: tuple[int, int]  # of the param group, and of the parameter in it
    metric: str
    operands: tuple[Tensor, ...]  # of the parameter's shape
    row: int  # of hyper-parameters

    @property
    def name(self) -> str:
        """Says what messages call it."""
        return parameter_name(self.group, *self.place)


def on_this_rank(items: Sequence[Item]) -> Sequence[Item]:
    """Returns the items with what this rank holds in the place of tensors that are spread over ranks."""
    if "torch.distributed.tensor" not in sys.modules:
        return items
    return [_held(item) if is_dtensor(item.param) or any(map(is_dtensor, item.operands)) else item for item in items]


def _held(item: Item) -> Item:
    """Returns an item of this rank's tensors; raises where its operands are spread otherwise than its parameter."""
    for operand in item.operands:
        if not is_spread_alike(operand, item.param):
            raise RuntimeError(
                f"the step of {item.name} is to be computed from {described(operand)}, and the parameter is {described(item.param)}: they must "
                "be spread alike; the step was made, without L1"
            )
    torch.autograd.graph.increment_version(item.param)
    return item._replace(param=held(item.param), operands=tuple(map(held, item.operands)))


@dataclass
class Buffers:
    """Stands for the tensors of one `Item` that kernels cannot use where they lie; None for one that they can."""

    kind: MetricKind
    weight: Tensor | None
    operands: list[Tensor | None] = field(default_factory=list)

    @classmethod
    def of(cls, item: Item) -> Buffers:
        """Allocates the buffers that an item needs."""
        param = item.param.detach()
        weight = None if is_usable(param) else empty_dense(param)
        narrow = param.dtype.itemsize < 4 and all(operand.dtype == param.dtype for operand in item.operands)
        own = cls(MetricKind(item.metric, param.dtype, narrow and bool(item.operands)), weight)
        like, dtype = param if weight is None else weight, own.kind.operand_dtype
        for operand in item.operands:
            in_place = (
                operand.dtype == dtype
                and operand.device == param.device
                and has_layout(operand, like)
                and not operand.is_neg()
            )
            own.operands.append(None if in_place else empty_dense(like, dtype))
        return own

    @property
    def any(self) -> bool:
        """Tells whether there are any, so that `load` and `save` have something to do."""
        return self.weight is not None or any(operand is not None for operand in self.operands)

    def load(self, item: Item) -> None:
        """Copies the item's tensors into the buffers, before the kernels."""
        if self.weight is not None:
            self.weight.copy_(item.param.detach())
        for buffer, operand in zip(self.operands, item.operands, strict=True):
            if buffer is not None:
                buffer.copy_(operand)

    def save(self, item: Item) -> None:
        """Copies the weight back, after the kernels."""
        if self.weight is not None:
            item.param.detach().copy_(self.weight)

    def as_operands(self, item: Item) -> Operands:
        """Returns the tensors that are worked on: the item's own, or their buffers."""
        weight = item.param.detach() if self.weight is None else self.weight
        pairs = zip(self.operands, item.operands, strict=True)
        states = [operand if buffer is None else buffer for buffer, operand in pairs]
        return Operands(item.metric, weight, weight, states, item.row)


class Shrinkage:
    """Holds the weights of one device that are shrunk after a step, and makes a batch of them."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._generation, self._memory = device, 0, Memory()
        self._seen: list[object] = []
        self._items: Sequence[Item] = ()

    def load(self, items: Sequence[Item]) -> None:
        """Takes over the weights of a step; validates what it has not seen before."""
        # Equal where the kernels may go on using the same addresses, without another look.
        seen: list[object] = [
            (metric, row, *[(t.data_ptr(), t.shape, t.stride(), t.dtype) for t in (param, *operands)])
            for param, _, _, metric, operands, row in items
        ]
        if seen != self._seen:
            self._seen = []
            for item in items:
                check_parameter(item.param, item.name)
                validation.addressable(item.param, item.name)
                for operand in item.operands:
                    validation.addressable(operand, f"what the step of {item.name} is computed from")
            validation.no_shared_memory((item.param.detach(), item.name) for item in items)
            self._buffers = [Buffers.of(item) for item in items]
            self._staged = [i for i, buffers in enumerate(self._buffers) if buffers.any]
            self._segments = _table(self._buffers, items)
            self._generation += 1
            self._seen = seen
        self._items = items
        for index in self._staged:
            self._buffers[index].load(items[index])

    def batch(self, rows: list[Hyper]) -> Batch:
        """Returns what a backend is given; ``rows``: of hyper-parameters, which the items count through."""
        return Batch(self._device, self._segments, self._operands, rows, self._memory, self._generation)

    def _operands(self) -> list[Operands]:
        return [buffers.as_operands(item) for buffers, item in zip(self._buffers, self._items, strict=True)]

    def save(self) -> None:
        """Copies staged weights back, after the kernels, and lets go of the step's tensors."""
        for index in self._staged:
            self._buffers[index].save(self._items[index])
        # Autograd must see that the weights have changed: a backward through a graph that saved them then raises.
        torch.autograd.graph.increment_version([item.param for item in self._items])
        self._items = ()


def check_parameter(param: Tensor, name: str) -> None:
    """Raises where a weight cannot be shrunk."""
    validation.parameter(param, name)
    if param.is_complex():
        raise ValueError(
            f"{name} is complex: a soft-threshold is defined for real numbers; put it into a param group with l1 = 0 and "
            "prox_weight_decay = 0"
        )
    if not transforms.is_fake(param):
        backends.check(param.device, param.dtype, name)


def _table(buffers: Sequence[Buffers], items: Sequence[Item]) -> Tensor:
    """Returns the table of segments, one for each item."""
    listed = []
    for own, item in zip(buffers, items, strict=True):
        tensors = own.as_operands(item)
        state0, state1, state2 = segments.addresses(tensors.states)
        listed.append(
            Segment(
                weight=tensors.weight.data_ptr(),
                state0=state0,
                state1=state1,
                state2=state2,
                numel=tensors.weight.numel(),
                row=item.row,
                kind=own.kind.number,
            )
        )
    return segments.table(listed)
