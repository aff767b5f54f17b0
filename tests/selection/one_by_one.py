"""Cross-validation of a network as one would write it: one after the other, with ordinary modules and loops."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor, nn

from regkernels import optim
from regkernels.param_groups import param_groups


class Outcome(NamedTuple):
    scores: Any  # (candidates, folds), minus the held-out loss
    epochs: Any


def epochs_of(rows: Tensor, length: int, batch_size: int, seed: int) -> Iterable[Sequence[Tensor]]:
    """Yields the batches of each epoch; rows from the start of the order fill it up to what the largest fold has."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = rows[torch.randperm(len(rows), generator=generator)].tolist()
        filled = [order[i % len(order)] for i in range(length)]
        yield [torch.tensor(filled[i : i + batch_size]) for i in range(0, length, batch_size)]


def one_by_one(
    make: Callable[[], nn.Module],
    loss: Callable[..., Tensor],
    candidates: Sequence[Mapping[str, float]],
    x: Tensor,
    y: Tensor,
    splits: Sequence[tuple[Any, Any]],
    *,
    seed: int,
    lr: float,
    epochs: int,
    batch_size: int,
    patience: int | None = None,
    optimizer: Callable[..., Any] = optim.AdamW,
    weights: Tensor | None = None,
) -> Outcome:
    weights = torch.ones(len(x), dtype=x.dtype) if weights is None else weights

    def mean_loss(model: nn.Module, rows: Tensor) -> Tensor:
        values = loss(model(x[rows]), y[rows])
        return values if values.dim() == 0 else (weights[rows] * values).sum() / weights[rows].sum()

    shape = (len(candidates), len(splits))
    scores, best_epochs = numpy.zeros(shape), numpy.zeros(shape, dtype=int)
    longest = max(len(train) for train, _ in splits)
    for row, options in enumerate(candidates):
        for fold, (train, held_out) in enumerate(splits):
            torch.manual_seed(seed)
            model = make()
            stepper = optimizer(param_groups(model, **options), lr=lr)
            best, since = -numpy.inf, 0
            for epoch, batches in enumerate(epochs_of(torch.tensor(train), longest, batch_size, seed + fold), 1):
                model.train()
                for rows in batches:
                    stepper.zero_grad()
                    mean_loss(model, rows).backward()
                    stepper.step()
                with torch.no_grad():
                    score = -float(mean_loss(copy.deepcopy(model).eval(), torch.tensor(held_out)))
                since += 1
                if patience is None or score > best:
                    best, since, best_epochs[row, fold] = score, 0, epoch
                if epoch == epochs or since == patience:
                    break
            scores[row, fold] = best
    return Outcome(scores, best_epochs)
