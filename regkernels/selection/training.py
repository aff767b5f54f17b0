"""Solves points of a path with an optimizer of the user's own, as networks and mini-batches need it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from regkernels.selection.belonging import keys_known_to
from regkernels.selection.coordinates import Coordinates
from regkernels.selection.objective import Objective
from regkernels.selection.penalty import Penalty
from regkernels.selection.solver import Solution, stationarity

MakeOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


class Training:
    """Trains from the present weights, which it changes, with a fresh optimizer for each strength.

    No momentum of one strength reaches into the next, so that a point of the path depends on the weights it was started from and on
    nothing else. With data in one batch, training ends as soon as the weights are a solution; with several, whose noise would be mistaken for that,
    after ``max_steps``.
    """

    def __init__(
        self,
        objective: Objective,
        penalty: Penalty,
        make_optimizer: MakeOptimizer,
        tolerance: float,
        max_steps: int,
        coordinates: Coordinates,
    ) -> None:
        self._objective, self._penalty, self._make_optimizer = objective, penalty, make_optimizer
        self._tolerance, self._max_steps, self._coordinates = tolerance, max_steps, coordinates

    def solve(self, strength: float) -> Solution:
        """Trains the weights for one strength."""
        objective = self._objective
        optimizer = self._optimizer(strength)
        steps = 0
        while steps < self._max_steps:
            for inputs, targets, _ in objective.batches:
                optimizer.zero_grad()
                loss = objective.loss(objective.model(inputs), targets)
                loss.backward()
                if objective.batches.whole and self._penalty.has_subdifferential:
                    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in objective.params]
                    violation = self._penalty.violation(strength, objective.penalised, gradients, self._coordinates)
                    if violation <= self._tolerance:
                        return Solution(loss.item(), violation, steps)
                optimizer.step()
                steps += 1
                if steps == self._max_steps:
                    break
        optimizer.zero_grad()
        point = objective.gradient()
        violation = stationarity(objective, self._penalty, strength, point[1], self._coordinates)
        return Solution(point[0], violation, steps)

    def _optimizer(self, strength: float) -> torch.optim.Optimizer:
        objective = self._objective
        groups = self._penalty.param_groups(strength, objective.penalised, objective.unpenalised)
        optimizer = self._make_optimizer(groups)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"optimizer must be a function of the param groups that returns an optimizer, got a {type(optimizer).__name__} "
                "from it; for example lambda groups: regkernels.optim.Adam(groups, lr=1e-3)"
            )
        # An optimizer of the user's own may read any key.
        if type(optimizer).__module__.partition(".")[0] in ("torch", "regkernels"):
            self._penalty.check_options(keys_known_to(optimizer, [self._penalty.key]))
        return optimizer
