"""Cuts weights into groups, and knows their norms and how much each is penalised."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from regkernels.table import grouping
from regkernels.table.grouping import Weighting


class Groups:
    """Takes runs of ``size`` consecutive indices along ``dim``, or whole tensors, for groups.

    Args:
        dim: 0 for rows (output neurons, filters), 1 for columns, ...; "tensor": each tensor is one group.
        size: consecutive indices along ``dim`` that form one group; must divide its length.
        weight: "sqrt_size" penalises a group by the root of its number of elements (Yuan and Lin, 2006), "ones" all alike.
    """

    def __init__(self, dim: int | str = 0, size: int = 1, weight: Weighting = "sqrt_size") -> None:
        grouping.check(dim, size, weight)
        self._dim, self._size, self._weight = dim, size, weight

    def rows(self, tensor: Tensor) -> Tensor:
        """Returns ``tensor`` as a matrix (groups, elements of a group), a view where possible."""
        if self._dim == "tensor":
            return tensor.reshape(1, -1)
        dim = int(self._dim)
        grouping.group_layout(tensor, dim, self._size, "a penalised parameter")
        return tensor.movedim(dim, 0).reshape(tensor.shape[dim] // self._size, -1)

    def norms(self, tensor: Tensor) -> Tensor:
        """Returns the Euclidean norm of each group, shape (groups,)."""
        return torch.linalg.vector_norm(self.rows(tensor), dim=1)

    def spread(self, values: Tensor, like: Tensor) -> Tensor:
        """Gives all elements of a group its value: from one per group, shape (groups,), to the shape of ``like``."""
        if self._dim == "tensor":
            return values.expand(like.shape) if like.dim() else values.reshape(())
        dim = int(self._dim)
        shape = [1] * like.dim()
        shape[dim] = like.shape[dim]
        return values.repeat_interleave(self._size).reshape(shape).expand(like.shape)

    def weight(self, tensor: Tensor) -> float:
        """Says by how much more a group of ``tensor`` is penalised than one of a single element."""
        return math.sqrt(self.rows(tensor).shape[1]) if self._weight == "sqrt_size" else 1.0
