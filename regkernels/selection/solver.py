"""Solves points of a path: proximal gradient steps find which weights are zero, Newton steps the values of the others."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from regkernels.optim import SGD
from regkernels.selection.newton import conjugate_gradients, flat_of, hessian_norm, parts, second_order
from regkernels.selection.objective import Objective
from regkernels.selection.penalty import Penalty, norm_inf

_PATIENCE = 5
"""Proximal steps between two Newton steps while weights still become zero or nonzero."""
_DAMPING, _FORCING = 1e-3, 1e-1
"""Of a Newton step's model, as a share of the largest curvature, and of the accuracy to which it is minimised."""
_SHORTEST = 2.0**-20
_LARGEST_CURVATURE = 1e30


class Solution(NamedTuple):
    """Describes where a solver stopped. ``violation``: how far 0 is from the subdifferential, in units of the loss per weight."""

    loss: float
    violation: float
    steps: int


class Point(NamedTuple):
    """Holds the smooth part at the present weights, and its gradients."""

    loss: float
    gradients: list[Tensor]


class ProximalNewton:
    """Minimises ``f(w) + penalty(w)`` from the present weights, which it changes.

    Each step is a proximal gradient step, by `regkernels.optim.SGD` with a step size that decreases the objective for certain
    (backtracking). It decides which weights are zero. For penalties with derivatives at all other weights (L1, elastic net,
    group lasso), Newton steps by conjugate gradients follow on those, as soon as none of them becomes zero or nonzero any more. They are taken
    only where the objective becomes smaller, so that the solver stops at a stationary point also where f is not convex.

    Sources: Beck and Teboulle (2009), section 3, for the steps and the backtracking; Nocedal and Wright, Numerical Optimization
    (2006), section 7.1, for Newton's method with conjugate gradients; Lee, Sun and Saunders (2014) for both together.
    """

    def __init__(self, objective: Objective, penalty: Penalty, tolerance: float, max_steps: int) -> None:
        self._objective, self._penalty = objective, penalty
        self._tolerance, self._max_steps = tolerance, max_steps
        self._curvature = self._lowest_curvature = hessian_norm(objective)

    def solve(self, strength: float) -> Solution:
        """Finds the weights for one strength."""
        point = Point(*self._objective.gradient())
        violation, steps, since = self._violation(strength, point), 0, 0
        self._scale = strength
        self._curvature = max(self._lowest_curvature, self._curvature / 4)
        groups = self._penalty.param_groups(strength, self._objective.penalised, self._objective.unpenalised)
        optimizer = SGD(groups, lr=1 / self._curvature)
        while not violation <= self._tolerance and steps < self._max_steps:
            steps += 1
            since += 1
            support = self._support()
            point, violation = self._proximal_step(optimizer, strength, point)
            settled = all(torch.equal(a, b) for a, b in zip(support, self._support(), strict=True))
            if self._penalty.has_subdifferential and violation > self._tolerance and (settled or since >= _PATIENCE):
                point, violation = self._newton_step(strength, point, violation)
                since = 0
        return Solution(point.loss, violation, steps)

    def _support(self) -> list[Tensor]:
        return [param.detach() != 0 for param in self._objective.penalised]

    def _violation(self, strength: float, point: Point) -> float:
        if not self._penalty.has_subdifferential:
            return float("inf")  # known after a step
        return self._penalty.violation(strength, self._objective.penalised, point.gradients)

    def _proximal_step(self, optimizer: SGD, strength: float, point: Point) -> tuple[Point, float]:
        """Takes a step with the largest step size at which a parabola of its curvature stays above f."""
        objective, params = self._objective, self._objective.params
        decay = self._penalty.strengths(strength)[1]
        before = [param.detach().clone() for param in params]
        while True:
            curvature = self._curvature + decay
            for param, gradient in zip(params, point.gradients, strict=True):
                param.grad = gradient
            for group in optimizer.param_groups:
                group["lr"] = 1 / curvature
            optimizer.step()
            moves = [param.detach() - old for param, old in zip(params, before, strict=True)]
            new = Point(*objective.gradient())
            slope, bend = _dot(point.gradients, moves), self._curvature * _dot(moves, moves)
            # Near the solution losses differ by less than their rounding, and only gradients still tell the curvature.
            if new.loss <= point.loss + slope + bend / 2 or _dot(new.gradients, moves) - slope <= bend:
                break
            self._curvature *= 2
            if not self._curvature < _LARGEST_CURVATURE:
                raise RuntimeError(
                    f"no step decreases the loss, which is {point.loss:.6g}: it is not finite near these weights, or its gradient is "
                    "wrong"
                )
            self._write(before)
        if self._penalty.has_subdifferential:
            return new, self._violation(strength, new)
        return new, curvature * norm_inf(moves)

    def _newton_step(self, strength: float, point: Point, violation: float) -> tuple[Point, float]:
        """Goes towards the minimum of the second-order model on the weights that are not zero; what would change its sign becomes zero."""
        params = self._objective.params
        before = [param.detach().clone() for param in params]
        own = len(self._objective.penalised)
        direction = self._newton_direction(strength, violation)
        penalised = list(enumerate(before[:own] if self._penalty.groups is None else []))
        kinks = [self._penalty.kinks(strength, index, old) for index, old in penalised]
        value = self._value(strength, point)
        rounding = 8 * torch.finfo(params[0].dtype).eps * abs(value)
        length = 1.0
        while length >= _SHORTEST:
            moved = [old + length * move for old, move in zip(before, direction, strict=True)]
            for index, old in penalised:
                moved[index] = torch.where(kinks[index] & (moved[index] * old < 0), 0.0, moved[index])
            self._write(moved)
            new = Point(*self._objective.gradient())
            change = self._value(strength, new) - value
            left = self._violation(strength, new)
            if change < -rounding or (change <= rounding and left < violation):
                return new, left
            length /= 2
        self._write(before)
        return point, violation

    def _newton_direction(self, strength: float, violation: float) -> list[Tensor]:
        """Points to the minimiser of the second-order model on the weights where the penalty has derivatives; 0 at the others.

        The model is made convex by a bit of curvature, which vanishes with the violation (Levenberg and Marquardt): with more
        weights than rows its Hessian is singular.
        """
        objective, penalty = self._objective, self._penalty
        own, params = len(objective.penalised), objective.params
        weights = [param.detach() for param in objective.penalised]
        gradients, product = second_order(objective, params)
        smooth = [gradients[i] + penalty.gradient(strength, i, w) for i, w in enumerate(weights)]
        free = flat_of(
            [penalty.differentiable(strength, i, w) for i, w in enumerate(weights)]
            + [torch.ones_like(p, dtype=torch.bool) for p in params[own:]]
        )
        remaining = min(1.0, violation / max(self._scale, violation))
        damping = _DAMPING * self._curvature * remaining

        def curved(flat: Tensor) -> Tensor:
            image = product(flat) + damping * flat
            vectors = parts(flat, params)
            added = [penalty.hessian_product(strength, w, v) for w, v in zip(weights, vectors, strict=False)]
            image = image + flat_of([*added, *(torch.zeros_like(p) for p in params[own:])])
            return torch.where(free, image, 0.0)

        right = torch.where(free, -flat_of([*smooth, *gradients[own:]]), 0.0)
        return parts(conjugate_gradients(curved, right, _FORCING * remaining), params)

    def _value(self, strength: float, point: Point) -> float:
        return point.loss + self._penalty.value(strength, self._objective.penalised)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for param, value in zip(self._objective.params, values, strict=True):
            param.copy_(value)


def _dot(left: list[Tensor], right: list[Tensor]) -> float:
    return sum((a.double() * b.double()).sum().item() for a, b in zip(left, right, strict=True))


def stationarity(objective: Objective, penalty: Penalty, strength: float, gradients: list[Tensor]) -> float:
    """Tells how far the present weights are from a solution, for any penalty: how far a proximal gradient step would move them, over its step
    size, where the subdifferential is not known."""
    if penalty.has_subdifferential:
        return penalty.violation(strength, objective.penalised, gradients)
    params = objective.params
    before = [param.detach().clone() for param in params]
    step = 1 / (hessian_norm(objective) + penalty.strengths(strength)[1])
    for param, gradient in zip(params, gradients, strict=True):
        param.grad = gradient
    SGD(penalty.param_groups(strength, objective.penalised, objective.unpenalised), lr=step).step()
    moved = norm_inf([param.detach() - old for param, old in zip(params, before, strict=True)])
    with torch.no_grad():
        for param, old in zip(params, before, strict=True):
            param.copy_(old)
            param.grad = None
    return moved / step
