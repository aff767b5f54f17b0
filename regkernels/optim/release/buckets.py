"""Steps buckets of parameters together in a backward pass, each by a part of the optimizer with a stepper of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regkernels.optim.optimizer import Optimizer
from regkernels.optim.stats import Stats

_OF_PART = ("params", "param_names", "param_numbers")
"""Keys of a bucket's param groups that are its own."""


@dataclass(eq=False)
class Member:
    """Says of a parameter where it stands in the whole optimizer, and what happens to its gradient."""

    param: Tensor
    group: int = 0  # index of its param group
    number: int = 0  # which the random numbers of its rounding depend on
    name: str = ""  # for messages
    bucket: Bucket | None = None
    hook: Any = None

    def ignore(self) -> None:
        """Leaves its gradient to the backward pass again."""
        if self.hook is not None:
            self.hook.remove()
            self.hook = None


@dataclass(eq=False)
class Bucket:
    """Updates parameters together, with the options and states of the whole optimizer."""

    members: list[Member] = field(default_factory=list)
    closed: bool = False  # no longer growing
    arrived: int = 0  # gradients, in the running backward
    streams: set[Any] = field(default_factory=set)  # on which they were written
    groups: list[int] = field(default_factory=list)  # param groups of the whole, one for each of the part's own
    _part: Optimizer | None = None

    @property
    def stats(self) -> Stats | None:
        """Returns the sums of the last step; None before the first one."""
        return None if self._part is None else self._part.stats

    @torch.no_grad()
    def step(self, whole: Optimizer) -> None:
        """Updates the parameters and frees their gradients. ``whole``: the optimizer that they belong to."""
        self.arrived, self.closed = 0, True
        if self._part is None:
            self._part = self._part_of(whole)
        self._take_options(whole, self._part)
        own = [torch.cuda.current_stream(self.members[0].param.device)] if self.streams else []
        others = self.streams.difference(own)
        for other in others:
            own[0].wait_stream(other)
        self._part.step()
        for member in self.members:
            member.param.grad = None
        for other in others:  # the memory of a gradient is given out again on the stream where it was allocated
            other.wait_stream(own[0])
        self.streams.clear()

    def _part_of(self, whole: Optimizer) -> Optimizer:
        """Makes an optimizer for the members, in param groups of their own."""
        self.groups = sorted({member.group for member in self.members})
        by_group = [[member for member in self.members if member.group == index] for index in self.groups]
        return whole._part(
            [
                {
                    "params": [member.param for member in group],
                    "param_names": tuple(member.name for member in group),
                    "param_numbers": tuple(member.number for member in group),
                }
                for group in by_group
            ]
        )

    def _take_options(self, whole: Optimizer, part: Optimizer) -> None:
        """Takes over the options that param groups have now, the ``l1_weights`` of its own parameters, and exchanged states."""
        if vars(part)["state"] is not vars(whole)["state"]:
            part.state = vars(whole)["state"]
        for index, group in zip(self.groups, part.param_groups, strict=True):
            own = whole.param_groups[index]
            for key in [key for key in group if key not in own and key not in _OF_PART]:
                del group[key]
            group.update((k, v) for k, v in own.items() if k not in _OF_PART)
            if own.get("l1_weights") is not None:
                by_param = dict(zip(map(id, own["params"]), own["l1_weights"], strict=True))
                group["l1_weights"] = [by_param[id(param)] for param in group["params"]]


def merged(parts: Sequence[tuple[Sequence[int], Stats]], groups: int) -> Stats:
    """Adds up the sums of several parts, each with the numbers of its param groups in the whole; ``groups``: how many that has."""
    device = parts[0][1].grad_norm.device

    def added(name: str) -> Tensor:
        zero = torch.zeros((), dtype=getattr(parts[0][1], name).dtype, device=device)
        totals = [zero] * groups
        for indices, stats in parts:
            for index, value in zip(indices, getattr(stats, name).unbind(), strict=True):
                totals[index] = totals[index] + value.to(device)
        return torch.stack(totals)

    square_sum = torch.stack([stats.grad_norm.to(device).square() for _, stats in parts]).sum()
    return Stats(added("l1_norm"), added("squared_norm"), added("nonzeros"), square_sum.sqrt(), added("zero_groups"))
