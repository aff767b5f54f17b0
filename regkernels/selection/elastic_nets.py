"""Poses elastic nets as problems: an objective for each fold and pair of strengths, and how far coefficients are from its minimum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regkernels.selection.folds import Folds, Gradient


class ElasticNets:
    """Poses F times A problems: to minimise ``f(w, b) + l1 * sum |w| + weight_decay / 2 * sum w**2`` for F folds and A pairs of strengths.

    Attributes:
        l1, decay: (1, A, 1, 1).
    """

    def __init__(self, folds: Folds, l1: Tensor, weight_decay: Tensor) -> None:
        self.folds = folds
        self.l1, self.decay = l1[None, :, None, None], weight_decay[None, :, None, None]
        self._reference = folds.largest_at_null().clamp(min=torch.finfo(folds.x.dtype).tiny)

    def gradient(self, w: Tensor, b: Tensor) -> Gradient:
        """Returns the gradient of what is smooth, at ``w`` (F, A, C, p) and ``b`` (F, A, C)."""
        of_w, of_b = self.folds.gradient(w, b)
        return Gradient(of_w + self.decay * w, of_b)

    def violations(self, w: Tensor, b: Tensor) -> Tensor:
        """Tells how far 0 is from each subdifferential, (F, A), as a share of the largest gradient at 0."""
        return _distance(w, self.gradient(w, b), self.l1, self.folds) / self._reference[:, None]

    def selected(self, fold: Tensor, index: Tensor) -> Selected:
        """Takes M of the problems, by their folds and by the numbers of their strengths."""
        return Selected(self.folds, fold, self.l1[0, index], self.decay[0, index], self._reference[fold])


@dataclass(frozen=True)
class Selected:
    """Poses M of the problems; ``fold`` and ``reference`` are (M,), ``l1`` and ``decay`` (M, 1, 1)."""

    folds: Folds
    fold: Tensor
    l1: Tensor
    decay: Tensor
    reference: Tensor

    def __getitem__(self, rows: Tensor) -> Selected:
        return Selected(self.folds, self.fold[rows], self.l1[rows], self.decay[rows], self.reference[rows])

    def violations(self, w: Tensor, b: Tensor) -> Tensor:
        """Does for ``w`` (M, C, p) and ``b`` (M, C) what `ElasticNets.violations` does; returns (M,)."""
        of_w, of_b = self.folds.gradient(w[:, None], b[:, None], self.fold)
        gradient = Gradient(of_w + (self.decay * w)[:, None], of_b)
        return _distance(w[:, None], gradient, self.l1[:, None], self.folds)[:, 0] / self.reference

    def values(self, w: Tensor, b: Tensor) -> Tensor:
        """Returns the objectives, (M,)."""
        penalty = self.l1 * w.abs() + self.decay / 2 * w * w
        return self.folds.values(w, b, self.fold) + penalty.sum((1, 2))


def _distance(w: Tensor, gradient: Gradient, l1: Tensor, folds: Folds) -> Tensor:
    of_w, of_b = gradient
    excess = torch.where(w == 0, (of_w.abs() - l1).clamp(min=0), (of_w + l1 * w.sign()).abs())
    return torch.maximum(excess.flatten(2).amax(2), of_b.abs().amax(2) / folds.unit.max())
