"""Computes what a step has to compute, in float64 and in plain formulas: the yardstick that peers are checked against.

A penalty in the loss, a coupled decay and a proximal step are different computations by design, so a peer is held against
its own kind:

- "subgradient": the penalties' gradient ``l1 * sign(w) + 2 * l2 * w`` is part of the gradient, also of what is clipped;
- "coupled": l2 as the optimizer's weight decay, added after clipping; there is no l1;
- "proximal": the step, then soft-threshold and division in the optimizer's own metric;
- "averaging": the optimizer works on weights of its own, from which the soft-threshold by the sum of all rates so far
  makes the model's (dual averaging, with momentum another fixed point than the lasso's).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.peers.peer import BETAS, EPS, MOMENTUM, WEIGHT_DECAY, Task


class Mathematics:
    """Takes steps in float64. It keeps states of its own and is told the weights, so that it never drifts away from a peer whose
    rounding has moved a weight across 0, where the penalty's gradient jumps."""

    def __init__(self, task: Task, penalty: str) -> None:
        self.task, self.penalty, self.steps = task, penalty, 0
        self.first: list[Tensor] = []
        self.second: list[Tensor] = []
        self.latent: list[Tensor] = []  # the optimizer's own weights, where it has some

    def step(self, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Returns what ``weights`` become; float64 tensors, which are left alone."""
        self.steps += 1
        if self.steps == 1:
            self.first = [torch.zeros_like(w) for w in weights]
            self.second = [torch.zeros_like(w) for w in weights]
            self.latent = list(weights) if self.penalty == "averaging" else []
        moved = []
        for index, (w, g) in enumerate(zip(weights, self.clipped(weights, gradients), strict=True)):
            if self.latent:
                z, _ = self.move(index, self.latent[index], g)
                self.latent[index] = z
                moved.append(soft_threshold(z, torch.tensor(self.task.l1 * self.task.lr * self.steps)))
            else:
                z, metric = self.move(index, w, g)
                moved.append(self.shrunk(z, metric))
        return moved

    def clipped(self, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
        if self.penalty == "subgradient":
            l1, l2 = self.task.l1, self.task.l2
            gradients = [g + l1 * w.sign() + 2 * l2 * w for w, g in zip(weights, gradients, strict=True)]
        if self.task.max_grad_norm is None:
            return list(gradients)
        norm = math.sqrt(sum(float((g * g).sum()) for g in gradients))
        return [g * min(1.0, self.task.max_grad_norm / (norm + 1e-6)) for g in gradients]

    def move(self, index: int, w: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Takes the optimizer's own step, and says how far it moves an element per unit of a gradient that stays."""
        task, lr = self.task, self.task.lr
        if task.l2 and self.penalty in ("coupled", "averaging"):
            g = g + 2 * task.l2 * w
        if task.rule == "sgd":
            return w - lr * g, torch.full_like(w, lr)
        if task.rule == "momentum":
            self.first[index] = MOMENTUM * self.first[index] + g
            return w - lr * self.first[index], torch.full_like(w, lr / (1 - MOMENTUM))
        beta1, beta2 = BETAS
        self.first[index] = beta1 * self.first[index] + (1 - beta1) * g
        self.second[index] = beta2 * self.second[index] + (1 - beta2) * g**2
        mean = self.first[index] / (1 - beta1**self.steps)
        metric = lr / ((self.second[index] / (1 - beta2**self.steps)).sqrt() + EPS)
        decayed = w if task.l2 else w * (1 - lr * WEIGHT_DECAY)
        return decayed - metric * mean, metric

    def shrunk(self, z: Tensor, metric: Tensor) -> Tensor:
        """Applies the proximal operator of ``l1 * |w| + l2 * w**2`` for an element's own step; of adaptive ones, within twice lr."""
        if self.penalty != "proximal":
            return z
        p = soft_threshold(z, metric * self.task.l1) / (1 + metric * 2 * self.task.l2)
        if self.task.rule in ("sgd", "momentum"):
            return p
        return z - (z - p).clamp(-2 * self.task.lr, 2 * self.task.lr)


def soft_threshold(z: Tensor, threshold: Tensor) -> Tensor:
    return z.sign() * (z.abs() - threshold).clamp(min=0)
