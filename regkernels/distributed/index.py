"""Finds the places in the whole parameter of the elements that a rank holds, by which stochastic rounding draws its numbers.

The *place* of an element is its offset in the memory of the whole parameter: by the strides that the `DTensor` has as a whole,
or those of a contiguous tensor where these would leave gaps. It depends neither on the number of ranks nor on the placements,
nor on how a rank's part lies in its memory; so any number of ranks draws the same random numbers, and replicas agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regkernels.distributed import shards
from regkernels.memory import dense_strides
from regkernels.table.grouping import GroupLayout
from regkernels.table.segments import Runs

Window = tuple[int, int]
"""The first index and the one after the last."""


def runs(param: Any, own: Tensor) -> Runs | None:
    """Returns the places of this rank's elements, as runs of consecutive ones; None where nothing lies before any of them.

    ``param``: any parameter. ``own``: a dense tensor of the shape that this rank holds of it; its strides say in which order
    the elements are asked for. Takes time and memory in proportion to the number of runs: one, unless dimensions inside the
    first that is sharded are longer than this rank's part of them, or ``own`` is permuted against the whole.
    """
    if not shards.is_dtensor(param) or not own.numel():
        return None
    whole = torch.empty_strided(param.shape, param.stride(), dtype=param.dtype, device="meta")
    strides = dense_strides(whole)
    found = Runs.one(0, 1)
    for dim in sorted(range(own.dim()), key=lambda dim: own.stride(dim)):
        windows = windows_of(param, dim)
        stride = strides[dim]
        if len(found.places) == 1 and int(found.lengths) == stride:
            # Whole slices, side by side: a parameter of one dimension would make a number of each element below.
            first = torch.tensor([begin for begin, _ in windows], dtype=torch.int64, device="cpu")
            count = torch.tensor([end - begin for begin, end in windows], dtype=torch.int64, device="cpu")
            found = Runs(first * stride + found.places, count * stride)
        else:
            index = torch.cat([torch.arange(*window, device="cpu") for window in [(0, 0), *windows]])
            places = (index * stride)[:, None] + found.places
            found = Runs(places.flatten(), found.lengths.repeat(len(index)))
        found = found.joined()
    return None if len(found.places) == 1 and not found.places.any() else found


def part_of(whole: Tensor, like: Any) -> Tensor:
    """Cuts out of a plain tensor that every rank has what this rank holds of the `DTensor` ``like``; spread as that is.

    Sends nothing, and stays on the device of ``whole``: `torch.distributed.tensor.distribute_tensor` would first move all of
    it to that of the mesh.
    """
    part = whole.detach()
    for dim, size in enumerate(whole.shape):
        windows = windows_of(like, dim)
        if windows != [(0, size)]:
            pieces = [part.narrow(dim, begin, end - begin) for begin, end in windows]
            part = torch.cat(pieces or [part.narrow(dim, 0, 0)], dim)  # memory of its own
    return shards.spread_like(part, like)


def by_groups(found: Runs | None, layout: GroupLayout, name: str) -> tuple[GroupLayout, int]:
    """Returns where groups are, and how far their runs are apart: element ``(o * groups + g) * inner + i`` of the layout has
    its own number, ``o`` times what is returned beside the layout, and that of the first one as its place.

    ``found``: `runs`. ``layout``: of the part; what is returned has the same groups. ``name``: of the parameter, for the message.

    Raises:
        ValueError: where the distances of the runs differ.
    """
    if found is None or len(found.places) == 1:
        return layout, 0
    length = int(found.lengths[0])
    if layout.groups == 1 and layout.size % length == 0:
        layout = GroupLayout(layout.size // length, 1, length)
    steps = found.places.diff()
    if layout.groups * layout.inner != length or bool((found.lengths != length).any() | (steps != steps[0]).any()):
        raise ValueError(
            f"{name} is updated by groups with stochastic rounding, and what this rank holds of it is no regular pattern in "
            "the whole parameter; shard it along the dimension of its groups alone, or keep its weights and states "
            "without random numbers (param_rounding='master', state_dtype=None)"
        )
    return layout, int(steps[0]) - length


def windows_of(param: Any, dim: int) -> list[Window]:
    """Returns the indices of one dimension that this rank holds, in order; windows of no elements are left out.

    As torch.chunk cuts them, mesh dimension by mesh dimension. A strided shard, as FSDP makes it of what tensor parallelism has
    cut before, takes such a chunk of each of ``split_factor`` chunks.
    """
    windows = [(0, param.shape[dim])]
    mesh = param.device_mesh
    for size, rank, placement in zip(mesh.shape, mesh.get_coordinate(), param.placements, strict=True):
        if getattr(placement, "dim", None) != dim:
            continue
        pieces = getattr(placement, "split_factor", 1)
        held = sum(end - begin for begin, end in windows)
        chunks = [_chunk(_chunk((0, held), pieces, piece), size, rank) for piece in range(pieces)]
        windows = [window for chunk in chunks for window in _within(windows, chunk)]
    return windows


def _chunk(window: Window, count: int, index: int) -> Window:
    """Cuts a window as torch.chunk does; what that has no chunk for is empty."""
    begin, end = window
    size = -(-(end - begin) // count)
    return min(begin + index * size, end), min(begin + (index + 1) * size, end)


def _within(windows: list[Window], chunk: Window) -> list[Window]:
    """Returns the part ``chunk`` of ``windows``, whose indices are counted through."""
    found = []
    before = 0
    for begin, end in windows:
        first = begin + max(chunk[0] - before, 0)
        last = min(begin + chunk[1] - before, end)
        if first < last:
            found.append((first, last))
        before += end - begin
    return found


class Lines(NamedTuple):
    """Describes the lines of one parameter.

    A line is what a rank holds at one index of the dimension that groups are cut along; it belongs to one group as a whole.
    """

    dim: int | None  # None: the whole parameter is one group
    size: int  # indices of a group
    groups: int  # of the whole parameter, and so are
    elements: int  # those of a group
    windows: Sequence[Window]  # indices that this rank holds

    @classmethod
    def of(cls, param: Any, dim: int | str, size: int) -> Lines:
        """Finds them. ``param``: a `DTensor`; ``dim`` and ``size``: as `regkernels.table.grouping.check` allows them."""
        if isinstance(dim, str) or not param.dim():
            return cls(None, 1, 1, param.numel(), [])
        own: int = dim % param.dim()
        others = math.prod(length for d, length in enumerate(param.shape) if d != own)
        return cls(own, size, param.shape[own] // size, others * size, windows_of(param, own))

    def sums(self, x: Tensor) -> Tensor:
        """Returns what this rank adds to the sum of each group: float64, (groups,). ``x``: of the shape that it holds, any type.

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
        """Returns the number of its group for each element: what broadcasts against ``like``, of the shape that this rank holds."""
        if self.dim is None:
            return numbers.reshape((1,) * like.dim())
        pieces = [torch.arange(*window, device=numbers.device) for window in [(0, 0), *self.windows]]
        lines = numbers[torch.cat(pieces) // self.size]
        return lines.reshape([-1 if dim == self.dim else 1 for dim in range(like.dim())])
