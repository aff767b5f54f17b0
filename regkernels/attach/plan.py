"""What is shrunk after a step: which weights, and where they and what their metric is computed from lie.

There is one plan per device. It keeps the table of addresses and the buffers of what cannot be used where it lies, as long as
the same memory is handed in; nothing is cached by the identity of a tensor.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regkernels import backends, reference, validation
from regkernels.backends import gpu
from regkernels.distributed.shards import held, is_dtensor, is_spread_alike, kind
from regkernels.memory import has_layout, is_dense
from regkernels.optim.step.entry import parameter_name
from regkernels.reference import compute_dtype
from regkernels.table import segments


class Item(NamedTuple):
    """One weight of a step, as the optimizer has it."""

    param: Tensor
    group: Mapping[str, Any]
    place: tuple[int, int]  # of the group, and of the parameter in it
    metric: str
    operands: tuple[Tensor, ...]  # of the parameter's shape
    row: int  # of hyper-parameters

    @property
    def name(self) -> str:
        """For messages."""
        return parameter_name(self.group, *self.place)


class MetricKind(NamedTuple):
    """What selects a kernel. ``narrow``: operands of half-precision weights in the weights' type, not in float32."""

    metric: str
    dtype: torch.dtype
    narrow: bool = False

    @property
    def number(self) -> int:
        metric = list(reference.METRICS).index(self.metric)
        return (metric * len(segments.DTYPES) + segments.DTYPES.index(self.dtype)) * 2 + self.narrow

    @classmethod
    def of(cls, number: int) -> MetricKind:
        """The inverse of `number`."""
        metric, dtype = divmod(number // 2, len(segments.DTYPES))
        return cls(list(reference.METRICS)[metric], segments.DTYPES[dtype], bool(number % 2))

    @property
    def operand_dtype(self) -> torch.dtype:
        return self.dtype if self.narrow else compute_dtype(self.dtype)


def on_this_rank(items: Sequence[Item]) -> Sequence[Item]:
    """The same, with what this rank holds in the place of tensors that are spread over ranks."""
    if "torch.distributed.tensor" not in sys.modules:
        return items
    return [_held(item) if is_dtensor(item.param) or any(map(is_dtensor, item.operands)) else item for item in items]


def _held(item: Item) -> Item:
    for operand in item.operands:
        if not is_spread_alike(operand, item.param):
            raise RuntimeError(
                f"the step of {item.name} is to be computed from {kind(operand)}, and the parameter is {kind(item.param)}: they must "
                "be spread alike; the step was made, without L1"
            )
    torch.autograd.graph.increment_version(item.param)
    return item._replace(param=held(item.param), operands=tuple(map(held, item.operands)))


@dataclass
class Entry:
    """What the kernels work on in the place of one `Item`. None stands for the item's own tensor, used where it lies."""

    kind: MetricKind
    weight: Tensor | None
    operands: list[Tensor | None] = field(default_factory=list)

    @classmethod
    def of(cls, item: Item) -> Entry:
        param = item.param.detach()
        weight = None if is_dense(param) and not param.is_neg() else _buffer(param, param.dtype)
        narrow = param.dtype.itemsize < 4 and all(operand.dtype == param.dtype for operand in item.operands)
        entry = cls(MetricKind(item.metric, param.dtype, narrow and bool(item.operands)), weight)
        like = param if weight is None else weight
        for operand in item.operands:
            in_place = (
                operand.dtype == entry.kind.operand_dtype
                and operand.device == param.device
                and has_layout(operand, like)
                and not operand.is_neg()
            )
            entry.operands.append(None if in_place else _buffer(like, entry.kind.operand_dtype))
        return entry

    @property
    def is_staged(self) -> bool:
        return self.weight is not None or any(operand is not None for operand in self.operands)

    def load(self, item: Item) -> None:
        if self.weight is not None:
            self.weight.copy_(item.param.detach())
        for buffer, operand in zip(self.operands, item.operands, strict=True):
            if buffer is not None:
                buffer.copy_(operand)

    def save(self, item: Item) -> None:
        if self.weight is not None:
            item.param.detach().copy_(self.weight)

    def tensors(self, item: Item) -> tuple[Tensor, list[Tensor]]:
        """Weight and operands as the kernels see them."""
        weight = item.param.detach() if self.weight is None else self.weight
        pairs = zip(self.operands, item.operands, strict=True)
        return weight, [operand if buffer is None else buffer for buffer, operand in pairs]


class Plan:
    """Of the weights on one device.

    Attributes:
        segments: int64 table with the columns of `regkernels.table.segments`; the operands are in the place of states, the kind is
            that of `MetricKind`.
        generation: another number whenever ``segments`` has changed.
        groups: 1, as no sums are formed.
        device_memory: what the backend keeps between steps; nothing here looks at it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.totals, self.generation = device, 1, 0
        self.device_memory: Any = None
        self._memory: list[object] = []
        self._items: Sequence[Item] = ()

    def load(self, items: Sequence[Item]) -> None:
        """Takes over the weights of a step; validates what it has not seen before."""
        # Equal where the kernels may go on using the same addresses, without another look.
        memory: list[object] = [
            (metric, row, *[(t.data_ptr(), t.shape, t.stride(), t.dtype) for t in (param, *operands)])
            for param, _, _, metric, operands, row in items
        ]
        if memory != self._memory:
            self._memory = []
            for item in items:
                check_parameter(item.param, item.name)
            validation.no_shared_memory((item.param.detach(), item.name) for item in items)
            self._entries = [Entry.of(item) for item in items]
            self._staged = [i for i, entry in enumerate(self._entries) if entry.is_staged]
            self.segments = _table(self._entries, items)
            self.generation += 1
            self._memory = memory
        self._items = items
        for index in self._staged:
            self._entries[index].load(items[index])

    def save(self) -> None:
        """After the kernels: copies staged weights back, and lets go of the step's tensors."""
        for index in self._staged:
            self._entries[index].save(self._items[index])
        # Autograd must see that the weights have changed: a backward through a graph that saved them then raises.
        torch.autograd.graph.increment_version([item.param for item in self._items])
        self._items = ()

    @staticmethod
    def kind_of(number: int) -> MetricKind:
        """The kernel that a number in the table stands for."""
        return MetricKind.of(number)

    def work(self) -> Iterator[tuple[str, Tensor, list[Tensor], int]]:
        """Metric, weight, operands and row of each weight."""
        for entry, item in zip(self._entries, self._items, strict=True):
            yield item.metric, *entry.tensors(item), item.row


def check_parameter(param: Tensor, name: str) -> None:
    """Raises where a weight cannot be shrunk."""
    validation.parameter(param, name)
    if param.is_complex():
        raise ValueError(
            f"{name} is complex: a soft-threshold is defined for real numbers; put it into a param group with l1 = 0 and "
            "prox_weight_decay = 0"
        )
    backends.backend_for(param.device)
    gpu.check_dtype(param.device, param.dtype, name)


def _buffer(like: Tensor, dtype: torch.dtype) -> Tensor:
    keep = torch.preserve_format if is_dense(like) else torch.contiguous_format
    return torch.empty_like(like, dtype=dtype, memory_format=keep)


def _table(entries: Sequence[Entry], items: Sequence[Item]) -> Tensor:
    rows = []
    for entry, item in zip(entries, items, strict=True):
        weight, operands = entry.tensors(item)
        row = [0] * len(segments.FIELDS)
        row[segments.WEIGHT] = weight.data_ptr()
        for column, operand in enumerate(operands, start=segments.STATE0):
            row[column] = operand.data_ptr()
        row[segments.NUMEL], row[segments.ROW], row[segments.KIND] = weight.numel(), item.row, entry.kind.number
        rows.append(row)
    return torch.tensor(rows, dtype=torch.int64, device="cpu").reshape(len(rows), len(segments.FIELDS))
