"""Holds the one value that backends are given to work on, whoever asks for it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from regkernels.table.grouping import GroupLayout
from regkernels.table.hyper import Hyper

Returned = TypeVar("Returned")


def in_one_go(first: Callable[[], Returned], then: Callable[[], object]) -> Returned:
    """Calls one and the other, and returns what the first returned. Ctrl-C does not come between: Python looks for it between its
    own instructions only, so it must be given functions that are not written in Python, or `functools.partial` of such."""
    returned, _ = map(operator.call, (first, then))
    return returned  # type: ignore[return-value]


class Memory:
    """Holds what a backend keeps from one batch of a producer to its next. Nobody but the backend looks inside."""

    __slots__ = ("kept",)

    def __init__(self) -> None:
        self.kept: Any = None


class Operands(NamedTuple):
    """Stands for a segment where tensors are needed instead of addresses: all dense, real and of equal layout."""

    rule_or_metric: str
    """A key of `regkernels.reference.RULES`; where somebody else has made the step, of `regkernels.reference.METRICS`."""
    weight: Tensor
    gradient: Tensor
    states: Sequence[Tensor]
    """Those of the rule, or what the metric is computed from."""
    row: int = 0
    total: int = 0
    rounding: str = "nearest"
    kept: Tensor | None = None
    stream: int = 0
    places: Tensor | int = 0
    penalty: str = "plain"
    l1_weight: Tensor | None = None
    layout: GroupLayout | None = None


class Batch(NamedTuple):
    """Lists everything that one call of a backend updates, on one device.

    A step of an optimizer makes one, a shrinkage after somebody else's step, and a proximal operator of a single tensor.
    """

    device: torch.device
    segments: Tensor
    """int64, (segments, len(`regkernels.table.segments.FIELDS`))."""
    operands: Callable[[], Iterable[Operands]]
    """The same as tensors, for the backend that computes in eager torch; called by no other."""
    rows: list[Hyper]
    """The hyper-parameters that the segments' ``row`` counts through."""
    memory: Memory
    generation: int = 0
    """Tells one content of ``segments`` from another within the life of ``memory``."""
    totals: int = 1
    """How many totals a table of sums has: for each class of parameters (see `regkernels.distributed.sums`) one per param group."""
    may_leave_out: bool = False
    """Whether a row may say, by ``skip``, that nothing is to be written."""
    is_over: Callable[[], object] | None = None
    """What a backend may call as soon as everything is written, where no interrupt can come between; see `in_one_go`."""
