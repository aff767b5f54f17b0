"""Groups of a parameter that is spread over ranks: which elements of them a rank holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regkernels.distributed.places import Window, windows_of


class Lines(NamedTuple):
    """Of one parameter. A line is what a rank holds at one index of the dimension that groups are cut along; it belongs to one
    group as a whole."""

    dim: int | None  # None: the whole parameter is one group
    size: int  # indices of a group
    groups: int  # of the whole parameter, and so are
    elements: int  # those of a group
    windows: Sequence[Window]  # indices that this rank holds

    @classmethod
    def of(cls, param: Any, dim: int | str, size: int) -> Lines:
        """``param``: a `DTensor`; ``dim`` and ``size``: as `regkernels.table.grouping.check` allows them."""
        if isinstance(dim, str) or not param.dim():
            return cls(None, 1, 1, param.numel(), [])
        own: int = dim % param.dim()
        others = math.prod(length for d, length in enumerate(param.shape) if d != own)
        return cls(own, size, param.shape[own] // size, others * size, windows_of(param, own))

    def sums(self, x: Tensor) -> Tensor:
        """What this rank adds to the sum of each group: float64, (groups,). ``x``: of the shape that it holds, any type.

        The same numbers have the same bits, also on an accelerator: nothing is added atomically.
        """
        if self.dim is None:
            return x.sum(dtype=torch.float64).reshape(1)
        others = [dim for dim in range(x.dim()) if dim != self.dim]
        lines = x.sum(others, dtype=torch.float64) if others else x.double()
        total = torch.zeros(self.groups, dtype=torch.float64, device=x.device)
        position = 0
        for begin, end in self.windows:
            first, before = divmod(begin, self.size)
            count, length = -(-end // self.size) - first, end - begin
            whole = torch.zeros(count * self.size, dtype=torch.float64, device=x.device)
            whole[before : before + length] = lines[position : position + length]
            total[first : first + count] += whole.reshape(count, self.size).sum(1)
            position += length
        return total

    def spread(self, numbers: Tensor, like: Tensor) -> Tensor:
        """A number of each group, for each element: what broadcasts against ``like``, of the shape that this rank holds."""
        if self.dim is None:
            return numbers.reshape((1,) * like.dim())
        pieces = [torch.arange(*window, device=numbers.device) for window in [(0, 0), *self.windows]]
        lines = numbers[torch.cat(pieces) // self.size]
        return lines.reshape([-1 if dim == self.dim else 1 for dim in range(like.dim())])
