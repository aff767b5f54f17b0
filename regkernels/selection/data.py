"""Takes data as batches, which a loss is a mean over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Data = tuple[Tensor, Tensor] | Iterable[tuple[Any, Tensor]]
"""A pair of tensors (inputs, targets) with one row per example, or an iterable of such pairs: a list, a ``DataLoader``."""


class Batches:
    """Yields ``(inputs, targets, share)`` for each batch, with ``share`` the part of all rows that it has; as often as one likes.

    Args:
        name: what error messages call the data.
        data: not changed; an iterable is gone through again and again.
        dtype: that floating-point inputs and targets are converted to; None leaves them.
        sample_weight: how much each row of a pair of tensors counts, >= 0; rows of weight 0 are left out before anything is read.
            ``weights`` has what is left; it is None without.
    """

    def __init__(
        self, name: str, data: Data, dtype: torch.dtype | None = None, sample_weight: Tensor | None = None
    ) -> None:
        self._name, self._dtype = name, dtype
        self.whole = isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(p, Tensor) for p in data)
        if not self.whole and (not isinstance(data, Iterable) or isinstance(data, (Tensor, str, bytes, dict))):
            raise TypeError(
                f"{name} must be a pair of tensors (inputs, targets) or an iterable of such pairs, got {_described(data)}"
            )
        if isinstance(data, Iterator):
            raise TypeError(
                f"{name} is an iterator, which is empty after the first pass: pass a list of batches or a DataLoader"
            )
        self.weights: Tensor | None = None
        if sample_weight is not None:
            data, self.weights = self._counting(data, sample_weight)
        batches: Iterable[Any] = [data] if self.whole else data
        self.rows = sum(self._rows(batch, "" if self.whole else f"[{index}]") for index, batch in enumerate(batches))
        if self.rows == 0:
            raise ValueError(f"{name} is empty: pass at least one row")
        self._batches = [self._converted(data)] if self.whole else data

    def __iter__(self) -> Iterator[tuple[Any, Tensor, float]]:
        for batch in self._batches:
            inputs, targets = batch if self.whole else self._converted(batch)
            yield inputs, targets, len(targets) / self.rows

    def _counting(self, data: Any, weights: Tensor) -> tuple[Data, Tensor]:
        """Returns the rows that count, and by how much."""
        if not self.whole:
            raise TypeError(
                f"sample_weight goes with {self._name}=(inputs, targets), a pair of tensors, not with batches"
            )
        inputs, targets = data
        weights = torch.as_tensor(weights)
        if weights.shape != targets.shape[:1]:
            raise ValueError(
                f"sample_weight must have one number for each of the {len(targets)} rows, got shape {tuple(weights.shape)}"
            )
        if weights.is_complex() or not weights.isfinite().all() or (weights < 0).any():
            raise ValueError("sample_weight must be finite and >= 0; leave rows out with 0")
        if not weights.any():
            raise ValueError("sample_weight is 0 for all rows: at least one must count")
        rows = weights != 0
        return (inputs[rows.to(inputs.device)], targets[rows.to(targets.device)]), weights[rows].double()

    def _rows(self, batch: Any, where: str) -> int:
        if not isinstance(batch, Sequence) or len(batch) != 2:
            raise TypeError(f"{self._name}{where} must be a pair (inputs, targets), got {_described(batch)}")
        inputs, targets = batch
        if not isinstance(targets, Tensor) or targets.dim() == 0:
            raise TypeError(
                f"the targets in {self._name}{where} must be a tensor with a row per example, got {targets!r}"
            )
        if isinstance(inputs, Tensor) and (inputs.dim() == 0 or len(inputs) != len(targets)):
            raise ValueError(
                f"{self._name}{where} has inputs of shape {tuple(inputs.shape)} and targets of shape "
                f"{tuple(targets.shape)}; both must have one row per example"
            )
        for part, tensor in (("inputs", inputs), ("targets", targets)):
            if isinstance(tensor, Tensor) and not tensor.isfinite().all():
                raise ValueError(f"{self._name}{where} has NaN or infinite {part}: remove or impute those rows")
        return len(targets)

    def _converted(self, batch: Any) -> tuple[Any, Tensor]:
        inputs, targets = (
            part.to(self._dtype) if self._dtype and isinstance(part, Tensor) and part.is_floating_point() else part
            for part in batch
        )
        return inputs, targets


def _described(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return f"a {type(value).__name__} of {len(value)} entries"
    return f"a {type(value).__name__}"
