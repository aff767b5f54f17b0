"""Solves elastic nets on all folds and for all strengths at once: accelerated proximal gradient steps, then Newton's on what is not zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regkernels.optim import SGD
from regkernels.selection.batched_newton import newton
from regkernels.selection.elastic_nets import ElasticNets
from regkernels.selection.folds import Folds

_FIRST_LOOK = 8
"""Steps until the solution is looked at and Newton's method is tried; after twice as many each time that it does not help."""
_LONGEST_WAIT = 256


class Solutions(NamedTuple):
    """Holds ``coefficients`` (F, A, C, p) and ``intercepts`` (F, A, C) of centred features, as `Folds` has them.

    ``violations``: (F, A), how far 0 is from the subdifferential of the objective, as a share of the largest gradient at 0.
    ``steps``: how many were taken.
    """

    coefficients: Tensor
    intercepts: Tensor
    violations: Tensor
    steps: int


def solve(
    folds: Folds,
    l1: Tensor,
    weight_decay: Tensor,
    *,
    tolerance: float,
    max_steps: int,
    progress: Callable[[int, int], object] = lambda done, of: None,
) -> Solutions:
    """Minimises ``f(w, b) + l1 * sum |w| + weight_decay / 2 * sum w**2`` for each fold and each pair of strengths.

    Args:
        folds: F problems.
        l1, weight_decay: (A,), >= 0.
        tolerance: which violation is small enough.
        max_steps: after which the solver gives up.
        progress: told how many of how many models are solved.

    All models take their steps in one call of `regkernels.optim.SGD`, on one tensor: in units of ``l1 / curvature`` each has an
    ``l1`` of 1 and a step size of 1. The extrapolation between steps, and its restarts, are each model's own.

    Sources: Beck and Teboulle (2009), FISTA; O'Donoghue and Candès (2015), section 3.2, for the restarts.
    """
    free = l1 == 0
    if free.any() and not free.all():
        parts: list[tuple[Any, ...]] = [
            solve(folds, l1[i], weight_decay[i], tolerance=tolerance, max_steps=max_steps, progress=progress)
            for i in (~free, free)
        ]
        order = torch.cat([(~free).nonzero(), free.nonzero()]).flatten().argsort()
        w, b, left = (torch.cat([part[i] for part in parts], 1)[:, order] for i in range(3))
        return Solutions(w, b, left, max(part[3] for part in parts))
    return _Solver(folds, l1, weight_decay, tolerance).run(max_steps, progress)


class _Solver:
    """Takes the steps, for values of ``l1`` that are all 0 or none."""

    def __init__(self, folds: Folds, l1: Tensor, weight_decay: Tensor, tolerance: float) -> None:
        self._nets, self._tolerance = ElasticNets(folds, l1, weight_decay), tolerance
        curvature = folds.curvature[:, None, None, None] + self._nets.decay
        self._height = torch.where(self._nets.l1 > 0, self._nets.l1, 1.0)  # gradients are in units of it
        self._unit = self._height / curvature  # and coefficients of this: (F, A, 1, 1)
        shape = (len(folds.weights), len(l1), folds.y.shape[1])
        self._w = torch.zeros(*shape, folds.x.shape[1], dtype=folds.x.dtype)
        self._b = folds.null()[:, None].expand(shape).clone()
        self._v, self._c = torch.nn.Parameter(self._w.clone()), torch.nn.Parameter(self._b / self._unit[..., 0])
        groups = [
            {"params": [self._v], "l1": float(l1.numel() > 0 and bool(l1[0] > 0))},
            {"params": [self._c], "l1": 0.0},
        ]
        self._optimizer = SGD(groups, lr=1.0)
        self._momentum = torch.ones_like(self._unit)
        self._before: tuple[Tensor, Tensor] = (self._v.detach().clone(), self._c.detach().clone())

    @torch.no_grad()
    def run(self, max_steps: int, progress: Callable[[int, int], object]) -> Solutions:
        violations = self._nets.violations(self._w, self._b)
        step, since, wait = 0, 0, _FIRST_LOOK
        while not bool((violations <= self._tolerance).all()) and step < max_steps:
            self._step()
            step += 1
            since += 1
            if since < wait and step < max_steps:
                continue
            self._w, self._b = self._before[0] * self._unit, self._before[1] * self._unit[..., 0]
            violations = self._nets.violations(self._w, self._b)
            helped = self._improve(violations) | self._follow(violations)
            since, wait = 0, _FIRST_LOOK if helped else min(2 * wait, _LONGEST_WAIT)
            progress(int((violations <= self._tolerance).sum()), violations.numel())
        return Solutions(self._w, self._b, violations, step)

    def _step(self) -> None:
        """Takes a proximal gradient step from the extrapolated point, which the parameters are; then the next extrapolation."""
        v, c = self._v.detach(), self._c.detach()
        gradient = self._nets.gradient(v * self._unit, c * self._unit[..., 0])
        self._v.grad = gradient[0] / self._height
        self._c.grad = gradient[1] / self._height[..., 0]
        from_v, from_c = v.clone(), c.clone()
        self._optimizer.step()
        old_v, old_c = self._before
        self._before = (v.clone(), c.clone())
        move_v, move_c = v - old_v, c - old_c
        turned = ((from_v - v) * move_v).sum((2, 3)) + ((from_c - c) * move_c).sum(2) > 0
        before = torch.where(turned[..., None, None], 1.0, self._momentum)
        self._momentum = (1 + (1 + 4 * before * before).sqrt()) / 2
        factor = (before - 1) / self._momentum
        v += factor * move_v
        c += factor[..., 0] * move_c

    def _improve(self, violations: Tensor) -> bool:
        """Tries Newton's method for all models that are not solved, from where they are. Changes ``violations``."""
        helped = False
        # Without weight decay as many coefficients as there are rows leave no curvature.
        wanted = (violations > self._tolerance) & ((self._w != 0).flatten(2).sum(2) < len(self._nets.folds.x))
        for rows in wanted.nonzero().split(self._at_once()):
            fold, index = rows.unbind(1)
            problems, w, b = self._nets.selected(fold, index), self._w[fold, index], self._b[fold, index]
            w, b, left, moved = newton(problems, w, b, violations[fold, index], self._tolerance)
            self._write(fold[moved], index[moved], w[moved], b[moved])
            violations[fold, index] = left
            helped = helped or bool(moved.any())
        return helped

    def _follow(self, violations: Tensor) -> bool:
        """Tries Newton's method from the solution for the strength before, on and on along each path. Changes ``violations``."""
        helped = False
        while True:
            solved = violations <= self._tolerance
            fold, index = (solved[:, :-1] & ~solved[:, 1:]).nonzero().unbind(1)
            if not len(fold):
                return helped
            w, b = self._w[fold, index], self._b[fold, index]
            index = index + 1
            problems = self._nets.selected(fold, index)
            w, b, left, _ = newton(problems, w, b, problems.violations(w, b), self._tolerance)
            done = left <= self._tolerance
            if not done.any():
                return helped
            self._write(fold[done], index[done], w[done], b[done])
            violations[fold[done], index[done]] = left[done]
            helped = True

    def _at_once(self) -> int:
        """Says how many models Newton's method may take at once, so that their parts of the data are no more than 64 MB."""
        most = min(2 * len(self._nets.folds.x), self._w[0, 0].numel()) + self._b.shape[2]
        return max(1, 2**23 // (most * max(len(self._nets.folds.x), most)))

    def _write(self, fold: Tensor, index: Tensor, w: Tensor, b: Tensor) -> None:
        self._w[fold, index], self._b[fold, index] = w, b
        unit = self._unit[fold, index]
        for own, parameter, value in (
            (self._before[0], self._v, w / unit),
            (self._before[1], self._c, b / unit[..., 0]),
        ):
            own[fold, index] = value
            parameter.detach()[fold, index] = value
        self._momentum[fold, index] = 1.0
