"""What is stepped together in a backward pass: some parameters of an optimizer, by an optimizer of their own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regkernels.optim.optimizer import Optimizer
from regkernels.optim.stats import Stats


@dataclass(eq=False)
class Member:
    """A parameter: where it stands in the whole optimizer, and what happens to its gradient."""

    param: Tensor
    group: int = 0
    number: int = 0  # which the random numbers of its rounding depend on
    name: str = ""  # for messages
    bucket: Bucket | None = None
    hook: Any = None

    def ignore(self) -> None:
        if self.hook is not None:
            self.hook.remove()
            self.hook = None


@dataclass(eq=False)
class Bucket:
    """Parameters that are updated together, by an optimizer of their own on the options and states of the whole one."""

    members: list[Member] = field(default_factory=list)
    closed: bool = False  # no longer growing
    arrived: int = 0  # gradients, in the running backward
    streams: set[Any] = field(default_factory=set)  # on which they were written
    groups: list[int] = field(default_factory=list)  # of the whole optimizer, for each group of `_part`
    _part: Optimizer | None = None

    @property
    def stats(self) -> Stats | None:
        return None if self._part is None else self._part.stats

    def step(self, whole: Optimizer) -> None:
        self.arrived, self.closed = 0, True
        part = self._current_part(whole)
        own = [torch.cuda.current_stream(self.members[0].param.device)] if self.streams else []
        others = self.streams.difference(own)
        for other in others:
            own[0].wait_stream(other)
        part.step()
        for member in self.members:
            member.param.grad = None
        for other in others:  # the memory of a gradient is given out again on the stream where it was allocated
            other.wait_stream(own[0])
        self.streams.clear()

    def _current_part(self, whole: Optimizer) -> Optimizer:
        if self._part is None or vars(self._part)["state"] is not vars(whole)["state"]:
            self.groups = sorted({member.group for member in self.members})
            self._part = _part_of(whole, [[m for m in self.members if m.group == index] for index in self.groups])
        for index, group in zip(self.groups, self._part.param_groups, strict=True):
            own = whole.param_groups[index]
            group.update((k, v) for k, v in own.items() if k not in ("params", "param_names"))
            if own.get("l1_weights") is not None:
                by_param = dict(zip(map(id, own["params"]), own["l1_weights"], strict=True))
                group["l1_weights"] = [by_param[id(param)] for param in group["params"]]
        return self._part


def _part_of(whole: Optimizer, groups: Sequence[Sequence[Member]]) -> Optimizer:
    """An optimizer for some parameters of ``whole``, on the same state dictionary."""
    trusted = whole._trust["state"]
    part = copy.copy(whole)
    whole._trust["state"] = trusted  # copying reads the state, but hands it to nobody else
    part._trust = whole._trust
    part._agreed = True  # a bucket is of this rank alone
    part._move_states = False  # into one buffer per bucket: the old one would stay until all buckets have left it
    part.param_groups = [
        {
            "params": [member.param for member in group],
            "param_names": tuple(member.name for member in group),
            "param_numbers": tuple(member.number for member in group),
        }
        for group in groups
    ]
    return part


def merged(parts: Sequence[tuple[Sequence[int], Stats]], groups: int) -> Stats:
    """The sums of several parts, each with the numbers of its groups in the whole."""
    device = parts[0][1].grad_norm.device

    def added(name: str) -> Tensor:
        zero = torch.zeros((), dtype=getattr(parts[0][1], name).dtype, device=device)
        rows = [zero] * groups
        for indices, stats in parts:
            for index, value in zip(indices, getattr(stats, name).unbind(), strict=True):
                rows[index] = rows[index] + value.to(device)
        return torch.stack(rows)

    square_sum = torch.stack([stats.grad_norm.to(device).square() for _, stats in parts]).sum()
    return Stats(added("l1_norm"), added("squared_norm"), added("nonzeros"), square_sum.sqrt(), added("zero_groups"))
