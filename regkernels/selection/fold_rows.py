"""Deals the rows of data to the folds of a cross-validation, and into batches that all folds take at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor


class FoldRows:
    """Holds which rows each of F trainings takes, and shuffles them anew for each epoch.

    Args:
        training: for each fold the numbers of its rows.
        seed: fold f shuffles with a generator of its own, seeded with ``seed + f``, so that a fold trained alone sees the same batches.
    """

    def __init__(self, training: Sequence[Tensor], seed: int) -> None:
        self._training = training
        self._generators = [torch.Generator().manual_seed(seed + fold) for fold in range(len(training))]

    def batches(self, size: int | None) -> Iterator[Tensor]:
        """Yields the batches of one epoch, (F, at most ``size``) numbers of rows; None: all rows in one.

        Folds with fewer rows than the largest take some of theirs twice, the first of the epoch: all take the same steps, with
        batches of the same size, which a loss that returns a mean and batch normalisation both need.
        """
        longest = max(map(len, self._training))
        shuffled = []
        for rows, generator in zip(self._training, self._generators, strict=True):
            order = rows[torch.randperm(len(rows), generator=generator)]
            shuffled.append(order.repeat(-(-longest // len(order)))[:longest])
        yield from torch.stack(shuffled).split(longest if size is None else size, dim=1)


def checked_folds(splits: Sequence[Any], count: int) -> list[tuple[Any, Any]]:
    """Returns the row numbers of each fold, training and held-out.

    Args:
        splits: pairs of row numbers or of masks, as scikit-learn takes them.
        count: of rows.

    Raises:
        ValueError: for anything else.
    """
    found = []
    for index, split in enumerate(splits):
        if not isinstance(split, (Sequence, numpy.ndarray)) or isinstance(split, str) or len(split) != 2:
            raise ValueError(f"cv[{index}] must be a pair of index arrays, training and held-out rows, got {split!r}")
        names = (f"the training part of cv[{index}]", f"the held-out part of cv[{index}]")
        train, held_out = (_rows(part, name, count) for part, name in zip(split, names, strict=True))
        for row in numpy.intersect1d(train, held_out)[:1]:
            raise ValueError(
                f"cv[{index}] trains on row {row}, which is held out to be scored on: leave it out of one of the two"
            )
        found.append((train, held_out))
    return found


def _rows(part: Any, name: str, count: int) -> Any:
    rows = numpy.asarray(part)
    if rows.dtype == bool and rows.shape == (count,):
        return numpy.flatnonzero(rows)
    if rows.ndim != 1 or not (numpy.issubdtype(rows.dtype, numpy.integer) or not rows.size):
        raise ValueError(
            f"{name} must be row numbers or a mask of the {count} rows, got {rows.dtype} of shape {rows.shape}"
        )
    for row in rows[(rows < 0) | (rows >= count)][:1]:
        raise ValueError(f"{name} must be from 0 to {count - 1}, got {row}")
    if len(rows) == count > 2 and set(rows.tolist()) <= {0, 1}:
        raise ValueError(f"{name} has a 0 or 1 for each row, which are row numbers: pass masks of dtype bool")
    return rows.astype(numpy.int64)


def check_folds(splits: Sequence[tuple[Any, Any]], labels: Any, classes: Any, weights: Any) -> None:
    """Raises where a fold cannot be trained or scored: nothing in it counts, or its training rows lack a class.

    Args:
        splits: training and held-out rows of each fold.
        labels: the number of each row's class; None for regression.
        classes: what users call the classes.
        weights: of the rows, >= 0; None for rows that count alike.
    """
    if not splits:
        raise ValueError("cv has no folds: pass a number of folds, such as cv=5")
    for fold, (train, held_out) in enumerate(splits):
        counting = [rows if weights is None else rows[weights[rows] > 0] for rows in (train, held_out)]
        for name, rows in zip(("training", "held-out"), counting, strict=True):
            if not len(rows):
                raise ValueError(
                    f"the {name} part of fold {fold} has no sample with a positive weight; choose another cv"
                )
        if labels is not None:
            missing = numpy.setdiff1d(numpy.arange(len(classes)), labels[counting[0]])
            if len(missing):
                count = int((labels == missing[0]).sum())
                raise ValueError(
                    f"the training part of fold {fold} has no sample of class {classes[missing[0]]}, of which there are {count}; "
                    "stratify the folds (cv=StratifiedKFold(5)) or take fewer of them; leave a class of one sample out"
                )
