"""Describes what is known of the tensors in a network: along which dimension their channels lie, and which channels are constant."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor

Spread = Literal["repeat", "tile"]


class Units:
    """Numbers channels, and knows which can only be removed together and which cannot be removed."""

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._made: dict[str, Tensor] = {}
        self._pinned: dict[int, str] = {}

    def of(self, name: str, count: int) -> Tensor:
        """Returns the units that the layer ``name`` makes: the same ones each time it is asked for."""
        if name not in self._made:
            first = len(self._parents)
            self._parents.extend(range(first, first + count))
            self._made[name] = torch.arange(first, first + count)
        return self._made[name]

    def root(self, unit: int) -> int:
        while (parent := self._parents[unit]) != unit:
            self._parents[unit] = unit = self._parents[parent]
        return unit

    def roots(self, units: Tensor) -> list[int]:
        return [self.root(unit) for unit in units.tolist()]

    def tie(self, a: Tensor, b: Tensor) -> None:
        for one, other in zip(self.roots(a), self.roots(b), strict=True):
            one, other = self.root(one), self.root(other)
            if one != other:
                self._parents[other] = one
                reason = self._pinned.pop(other, None)
                if reason is not None:
                    self._pinned.setdefault(one, reason)

    def pin(self, units: Tensor, reason: str) -> None:
        for root in self.roots(units):
            self._pinned.setdefault(root, reason)

    def pinned(self, root: int) -> str | None:
        return self._pinned.get(root)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Describes a tensor with channels.

    ``dim`` is negative: counted from the last dimension, which leaves it right for every number of batch dimensions. After flattening,
    each unit stands for several indices, how many is not known yet: ``spread`` "repeat" says that they are neighbours (0 0 1 1 2 2),
    "tile" that the units follow each other (0 1 2 0 1 2).
    """

    units: Tensor
    known: Tensor
    """Which channels are the same number at every place of every sample."""
    value: Tensor
    """That number, in float64 or complex128; 0 where it is not known."""
    dim: int
    rank: int | None
    spread: Spread | None = None

    def __len__(self) -> int:
        return len(self.units)

    def placed(self, **changes: Any) -> Layout:
        return dataclasses.replace(self, **changes)

    def constant(self, known: Tensor, value: Tensor) -> Layout:
        known = known & value.isfinite()
        return dataclasses.replace(self, known=known, value=torch.where(known, value, 0))

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Layout:
        """Takes each element through ``function``."""
        try:
            value = function(self.value.clone()).to("cpu", self.value.dtype)
        except Exception:  # of whatever sort: it is not known what a function does with float64 on the CPU
            return self.nowhere_constant()
        return self.constant(self.known, value)

    def constant_if_zero(self) -> Layout:
        """Keeps zeros, and takes the other constants for not constant."""
        return self.constant(self.known & (self.value == 0), self.value)

    def nowhere_constant(self) -> Layout:
        return self.constant(torch.zeros_like(self.known), self.value)

    def taken(self, index: Tensor) -> Layout:
        return dataclasses.replace(self, units=self.units[index], known=self.known[index], value=self.value[index])

    def sized(self, size: int) -> Layout | None:
        """Gives each index its unit, where ``size`` is the number of indices; None if they do not fit."""
        if self.spread is None or len(self) == 0:
            return self if len(self) == size else None
        if size % len(self) != 0:
            return None
        index = torch.arange(len(self))
        times = size // len(self)
        index = index.repeat_interleave(times) if self.spread == "repeat" else index.repeat(times)
        return self.taken(index).placed(spread=None)

    def position(self, dim: int) -> int | None:
        """Returns the negative form of ``dim``; None where that takes a rank that is not known."""
        if dim < 0:
            return dim
        return None if self.rank is None else dim - self.rank


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Stands for a tensor, or something else, without removable channels, and says why."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Held(Fixed):
    """Stands for a tensor of the model that forward reads itself, under the name ``target``; ``alone`` where it is read once."""

    target: str
    tensor: Tensor
    alone: bool


@dataclasses.dataclass(frozen=True)
class Share:
    """Stands for the number of channels of a tensor times ``part``, as in ``x.shape[-1] // 2``."""

    layout: Layout
    part: Fraction


@dataclasses.dataclass(frozen=True)
class Number:
    """Stands for a number that does not depend on how many channels there are; ``value`` where it is known, ``batch_of`` for ``x.size(0)``."""

    value: float | complex | None = None
    batch_of: object = None


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Stands for ``x.shape``."""

    layout: Layout
    of: object


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Stands for what ``chunk`` returns."""

    layouts: tuple[Layout, ...]


Value = Layout | Fixed | Number | Share | Sizes | Pieces


def layouts_in(value: Value) -> tuple[Layout, ...]:
    if isinstance(value, Layout):
        return (value,)
    if isinstance(value, (Share, Sizes)):
        return (value.layout,)
    return value.layouts if isinstance(value, Pieces) else ()
