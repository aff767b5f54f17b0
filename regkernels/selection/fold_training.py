"""Trains a model per candidate and fold, all at once, and keeps of each the epoch that scores best on its held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from regkernels.selection.fold_rows import FoldRows
from regkernels.selection.stacked import Criterion, StackedModels

_ROWS_AT_ONCE = 1024  # of held-out rows: bounds the memory of the activations of all models


@dataclass(frozen=True)
class Data:
    """Holds all rows, in the dtype and on the device of the models.

    Attributes:
        weights: of the rows, for a loss per sample; None for rows that count alike.
    """

    loss: Criterion
    features: Tensor
    targets: Tensor
    weights: Tensor | None


class Training:
    """Trains S x F models: S candidates on F folds; model ``s * F + f`` is candidate s on fold f.

    Args:
        stacked: the models.
        optimizer: of all of them.
        data: all rows.
        rows: of the folds.
        folds: F.
        batch_size: None: all rows of a fold in one batch.
    """

    def __init__(
        self,
        stacked: StackedModels,
        optimizer: torch.optim.Optimizer,
        data: Data,
        rows: FoldRows,
        folds: int,
        batch_size: int | None,
    ) -> None:
        self._stacked, self._optimizer, self._data = stacked, optimizer, data
        self._rows, self._folds, self._batch_size = rows, folds, batch_size

    def epoch(self) -> None:
        """Trains all models on all of their rows, once."""
        data = self._data
        for rows in self._rows.batches(self._batch_size):
            x, y = self._dealt(data.features, rows), self._dealt(data.targets, rows)
            weights = None if data.weights is None else self._dealt(data.weights, rows)
            self._stacked.losses(data.loss, x, y, weights=weights, in_dims=0).sum().backward()
            self._optimizer.step()
            self._optimizer.zero_grad()

    @torch.no_grad()
    def scores(self, held_out: Sequence[Tensor]) -> Tensor:
        """Returns minus the mean loss of each model on the held-out rows of its fold, (S, F); -inf for one that has diverged."""
        data = self._data
        longest = max(map(len, held_out))
        padded = torch.stack([rows.repeat(-(-longest // len(rows)))[:longest] for rows in held_out])
        outputs = torch.cat(
            [
                self._stacked.predict(self._dealt(data.features, rows), in_dims=0)
                for rows in padded.split(_ROWS_AT_ONCE, 1)
            ],
            dim=1,
        )
        by_fold = outputs.unflatten(0, (-1, self._folds))
        found = [self._mean_loss(by_fold[:, fold, : len(rows)], rows) for fold, rows in enumerate(held_out)]
        return -torch.stack(found, 1).double().cpu().nan_to_num(torch.inf, torch.inf, -torch.inf)

    def _mean_loss(self, outputs: Tensor, rows: Tensor) -> Tensor:
        data = self._data
        # One call for all candidates: the loss of the networks of a fold sees the same targets.
        losses = vmap(data.loss, in_dims=(0, None))(outputs, data.targets[rows])
        if losses.dim() == 1:
            return losses
        samples = losses.flatten(2).mean(2) if losses.dim() > 2 else losses
        if data.weights is None:
            return samples.mean(1)
        weights = data.weights[rows]
        return samples @ weights / weights.sum()

    def _dealt(self, tensor: Tensor, rows: Tensor) -> Tensor:
        """Returns the rows of each model, (S * F, batch, ...): those of its fold."""
        own = tensor[rows.to(tensor.device)]
        return own.repeat(len(self._stacked) // self._folds, *[1] * (own.dim() - 1))


@dataclass(frozen=True)
class Best:
    """Holds the best epoch of each model, (S, F).

    Attributes:
        scores: on the held-out rows, the higher the better.
        epochs: after how many that was.
        nonzeros: penalised weights that were not exactly zero then.
    """

    scores: Tensor
    epochs: Tensor
    nonzeros: Tensor


def trained(
    training: Training,
    held_out: Sequence[Tensor],
    nonzeros: Callable[[], Tensor],
    epochs: int,
    patience: int | None,
    progress: Callable[[int], Any],
) -> Best:
    """Trains for a number of epochs, or until the last model has stopped.

    Args:
        training: the models.
        held_out: rows of each fold to score on.
        nonzeros: counts the penalised weights of each model that are not zero, (S, F).
        epochs: at most.
        patience: after how many epochs without a better score a model stops. What it does while the others go on is not looked
            at. None: all take all epochs, and the last one counts.
        progress: called after each epoch with the number of models that go on.
    """
    best: Best | None = None
    for epoch in range(1, epochs + 1):
        training.epoch()
        if patience is None:
            progress(0)
            continue
        found = training.scores(held_out)
        now = Best(found, torch.full(found.shape, epoch), nonzeros())
        if best is None:
            best = now
            running = torch.ones(found.shape, dtype=torch.bool)
        better = running & (now.scores > best.scores)
        best = Best(
            torch.where(better, now.scores, best.scores),
            torch.where(better, now.epochs, best.epochs),
            torch.where(better, now.nonzeros, best.nonzeros),
        )
        running &= epoch - best.epochs < patience
        progress(int(running.sum()))
        if not running.any():
            break
    if best is None:
        found = training.scores(held_out)
        best = Best(found, torch.full(found.shape, epochs), nonzeros())
    return best
