"""Says which elements of a tensor in memory belong together: groups of weights."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor

from regkernels.memory import dense_strides

Dim = int | Literal["tensor"]

Weighting = Literal["sqrt_size", "ones"]

WEIGHTS = get_args(Weighting)


class GroupLayout(NamedTuple):
    """Says where the groups of a tensor without gaps lie in memory: element ``(o * groups + g) * inner + i`` belongs to group g."""

    outer: int
    groups: int
    inner: int

    @property
    def size(self) -> int:
        """Returns how many elements a group has."""
        return self.outer * self.inner

    def weight(self, weighting: str) -> float:
        """Returns what the norm of a group counts: the square root of its size ("sqrt_size"), or 1 ("ones")."""
        return math.sqrt(self.size) if weighting == "sqrt_size" else 1.0


def check(dim: Any, size: Any, weight: Any, prefix: str = "") -> None:
    """Raises where one of them can be right for no tensor. ``prefix``: of their names in the messages."""
    if dim != "tensor" and (isinstance(dim, bool) or not isinstance(dim, int)):
        raise TypeError(f"{prefix}dim must be an integer or 'tensor', got {dim!r}")
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"{prefix}size must be an integer, got {size!r}")
    if size < 1:
        raise ValueError(f"{prefix}size must be at least 1, got {size}")
    if dim == "tensor" and size != 1:
        raise ValueError(
            f"{prefix}size must be 1 where {prefix}dim is 'tensor' and each tensor is one group, got {size}; name the "
            "dimension to cut into groups, or leave the size out"
        )
    if weight not in WEIGHTS:
        raise ValueError(f"{prefix}weight must be one of {', '.join(map(repr, WEIGHTS))}, got {weight!r}")


def group_layout(tensor: Tensor, dim: Dim, size: int = 1, name: str = "the tensor", prefix: str = "") -> GroupLayout:
    """Returns the groups of ``size`` consecutive indices along ``dim``, or the one group that is the whole ``tensor``.

    Looks at shape and strides only. For a tensor with gaps or overlaps it is the layout of its contiguous copy; one whose
    dimensions are permuted in memory is taken as it lies there. A tensor without dimensions has the dimensions 0 and -1,
    as everywhere in torch. ``name`` and ``prefix``: of the tensor and of the arguments, for messages.

    Raises:
        ValueError: where the tensor has no such dimension, or ``size`` does not divide its length.
    """
    numel = tensor.numel()
    if dim == "tensor":
        return GroupLayout(1, 1, numel)
    shape, strides = tuple(tensor.shape) or (1,), dense_strides(tensor) or (1,)
    of = f"{name} of shape {tuple(tensor.shape)}"
    if not -len(shape) <= dim < len(shape):
        raise ValueError(
            f"{prefix}dim={dim} does not exist in {of}: choose from {-len(shape)} to {len(shape) - 1} or 'tensor', or pass "
            "parameters with fewer dimensions separately"
        )
    length = shape[dim]
    if length % size:
        raise ValueError(
            f"{prefix}size={size} does not divide the {length} of {prefix}dim={dim} in {of}: choose a divisor, or pass that "
            "parameter separately"
        )
    groups = length // size
    if numel == 0:
        return GroupLayout(0, groups, 0)
    if length == 1:  # whose stride means nothing
        return GroupLayout(1, 1, numel)
    inner = strides[dim] * size
    return GroupLayout(numel // (groups * inner), groups, inner)
