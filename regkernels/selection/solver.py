"""Solves points of a path: proximal gradient steps find which weights are zero, Newton steps the values of the others."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from regkernels.optim import SGD
from regkernels.selection.coordinates import Coordinates
from regkernels.selection.curvature import SecondOrder
from regkernels.selection.newton import flat_of, norm_inf, parts
from regkernels.selection.objective import Objective
from regkernels.selection.penalty import Penalty

_PATIENCE = 5
"""Proximal steps between two Newton steps while weights still become zero or nonzero."""
_PROGRESS = 0.1
"""Of its violation, what a Newton step may leave for another one to follow at once."""
_FEW = 3
"""Weights that may enter at once beside half as many as there are, before a proximal step is asked."""
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

    All steps are taken in coordinates in which features have the same size and no mean, so that units do not matter.
    A proximal gradient step, with a step size that decreases the objective for certain (backtracking), decides which weights are zero.
    For penalties with derivatives at all other weights (L1, elastic net, group lasso), Newton steps follow on those, as soon as
    none of them becomes zero or nonzero any more. They are taken only where the objective becomes smaller, so that the solver stops
    at a stationary point also where f is not convex.

    Sources: Beck and Teboulle (2009), section 3, for the steps and the backtracking; Nocedal and Wright, Numerical Optimization
    (2006), section 7.1, for Newton's method with conjugate gradients; Lee, Sun and Saunders (2014) for both together.
    """

    def __init__(
        self, objective: Objective, penalty: Penalty, tolerance: float, max_steps: int, coordinates: Coordinates
    ) -> None:
        self._objective, self._penalty, self._coordinates = objective, penalty, coordinates
        self._tolerance, self._max_steps = tolerance, max_steps
        self._model = SecondOrder(objective, penalty, coordinates)
        self._curvature = self._lowest_curvature = self._model.largest()
        self._point: Point | None = None  # at the present weights, which is the same for all strengths

    def solve(self, strength: float) -> Solution:
        """Finds the weights for one strength."""
        point = self._point or Point(*self._objective.gradient())
        violation, steps = self._violation(strength, point), 0
        self._model.scale = strength * self._coordinates.inverse.max().item()
        self._curvature = max(self._lowest_curvature, self._curvature / 4)
        # That the weights of the strength before are the right ones, or nearly, is tried first.
        since, entering = 0, self._nearly_right(strength, point)
        settled = entering
        while not violation <= self._tolerance and steps < self._max_steps:
            steps += 1
            if self._penalty.has_subdifferential and (settled or since >= _PATIENCE):
                before = violation
                point, violation = self._newton_step(strength, point, violation, entering=entering)
                settled, since = entering and violation <= _PROGRESS * before, 0
                continue
            since, entering = since + 1, False
            support = self._support()
            point, violation = self._proximal_step(strength, point)
            settled = all(torch.equal(a, b) for a, b in zip(support, self._support(), strict=True))
        self._point = point
        return Solution(point.loss, violation, steps)

    def _nearly_right(self, strength: float, point: Point) -> bool:
        """Tells whether few weights are zero that should not be, beside those that are not zero already."""
        if not self._penalty.has_subdifferential:
            return False
        own = self._objective.penalised
        centred = parts(self._coordinates.centred(flat_of(point.gradients)), self._objective.params)
        leaning = [self._penalty.leaning(strength, i, p.detach(), centred[i]) for i, p in enumerate(own)]
        before = sum(int(param.count_nonzero()) for param in own)
        return 0 < sum(int(part.count_nonzero()) for part in leaning) <= _FEW + before * 3 // 2

    def _support(self) -> list[Tensor]:
        return [param.detach() != 0 for param in self._objective.penalised]

    def _violation(self, strength: float, point: Point) -> float:
        if not self._penalty.has_subdifferential:
            return float("inf")  # known after a step
        return self._penalty.violation(strength, self._objective.penalised, point.gradients, self._coordinates)

    def _proximal_step(self, strength: float, point: Point) -> tuple[Point, float]:
        """Takes a step with the largest step size at which a parabola of its curvature stays above f."""
        params = self._objective.params
        before = [param.detach().clone() for param in params]
        downhill = self._coordinates.pull(flat_of(point.gradients))
        while True:
            curvature = self._curvature + self._penalty.strengths(strength)[1] * (not self._penalty.has_subdifferential)
            if self._penalty.has_subdifferential:
                self._write(self._stepped(strength, before, downhill))
            else:
                self._optimizer_step(strength, point, 1 / curvature)
            moves = [param.detach() - old for param, old in zip(params, before, strict=True)]
            new = Point(*self._objective.gradient())
            slope, bend = _dot(point.gradients, moves), self._curvature * self._coordinates.square(flat_of(moves))
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

    def _stepped(self, strength: float, before: list[Tensor], downhill: Tensor) -> list[Tensor]:
        """Returns the parameters after a gradient step in the coordinates and the proximal operator of the penalty."""
        own, coordinates = self._objective.penalised, self._coordinates
        size = len(coordinates.inverse)
        steps = parts(coordinates.inverse.square() / self._curvature, own)
        aims = parts(flat_of(before[: len(own)]) - coordinates.inverse * downhill[:size] / self._curvature, own)
        landed = flat_of(
            [
                self._penalty.proximal(strength, i, aim, step)
                for i, (aim, step) in enumerate(zip(aims, steps, strict=True))
            ]
        )
        others = -coordinates.inverse_others * downhill[size:] / self._curvature
        if coordinates.shift is not None:
            others = others - coordinates.shift @ (landed - flat_of(before[: len(own)]))
        return parts(torch.cat([landed, flat_of(before)[size:] + others]), self._objective.params)

    def _optimizer_step(self, strength: float, point: Point, step: float) -> None:
        """Takes the step by the package's own optimizer, which knows every penalty."""
        for param, gradient in zip(self._objective.params, point.gradients, strict=True):
            param.grad = gradient
        SGD(
            self._penalty.param_groups(strength, self._objective.penalised, self._objective.unpenalised), lr=step
        ).step()

    def _newton_step(self, strength: float, point: Point, violation: float, *, entering: bool) -> tuple[Point, float]:
        """Goes towards the minimum of the second-order model on the weights that are not zero; what would change its sign becomes zero.

        With ``entering``, zeros that should not be zero move, too: right when they are few, as after a small change of the strength.
        """
        params = self._objective.params
        before = [param.detach().clone() for param in params]
        own = len(self._objective.penalised)
        centred = parts(self._coordinates.centred(flat_of(point.gradients)), params)
        signed = [
            self._penalty.leaning(strength, i, before[i], centred[i]) if entering else before[i] for i in range(own)
        ]
        direction = self._model.direction(strength, violation, signed, point.gradients, self._curvature)
        penalised = list(enumerate(signed if self._penalty.groups is None else []))
        kinks = [self._penalty.kinks(strength, index, old) for index, old in penalised]
        value = self._value(strength, point)
        rounding = 8 * torch.finfo(params[0].dtype).eps * abs(value)
        length = 1.0
        while length >= _SHORTEST:
            moved = [old + length * move for old, move in zip(before, direction, strict=True)]
            for index, old in penalised:
                moved[index] = torch.where(kinks[index] & (moved[index] * old.sign() < 0), 0.0, moved[index])
            self._recentre(before, moved, direction, length)
            self._write(moved)
            new = Point(*self._objective.gradient())
            change = self._value(strength, new) - value
            left = self._violation(strength, new)
            if change < -rounding or (change <= rounding and left < violation):
                self._model.judge(length == 1.0 and left <= violation / 4)
                return new, left
            length /= 2
        self._write(before)
        self._model.judge(False)
        return point, violation

    def _recentre(self, before: list[Tensor], moved: list[Tensor], direction: list[Tensor], length: float) -> None:
        """Lets the unpenalised parameters make up for weights that were stopped at zero, as they do for the other moves."""
        shift, own = self._coordinates.shift, len(self._objective.penalised)
        if shift is None:
            return
        meant = flat_of(before[:own]) + length * flat_of(direction[:own])
        more = shift @ (meant - flat_of(moved[:own]))
        for index, part in enumerate(parts(more, self._objective.unpenalised), own):
            moved[index] = moved[index] + part

    def _value(self, strength: float, point: Point) -> float:
        return point.loss + self._penalty.value(strength, self._objective.penalised)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for param, value in zip(self._objective.params, values, strict=True):
            param.copy_(value)


def _dot(left: list[Tensor], right: list[Tensor]) -> float:
    return sum((a.double() * b.double()).sum().item() for a, b in zip(left, right, strict=True))


def stationarity(
    objective: Objective, penalty: Penalty, strength: float, gradients: list[Tensor], coordinates: Coordinates
) -> float:
    """Tells how far the present weights are from a solution, for any penalty: how far a proximal gradient step would move them, over its step
    size, where the subdifferential is not known."""
    if penalty.has_subdifferential:
        return penalty.violation(strength, objective.penalised, gradients, coordinates)
    params = objective.params
    before = [param.detach().clone() for param in params]
    step = 1 / (
        SecondOrder(objective, penalty, Coordinates.plain(objective)).largest() + penalty.strengths(strength)[1]
    )
    for param, gradient in zip(params, gradients, strict=True):
        param.grad = gradient
    SGD(penalty.param_groups(strength, objective.penalised, objective.unpenalised), lr=step).step()
    moved = norm_inf([param.detach() - old for param, old in zip(params, before, strict=True)])
    with torch.no_grad():
        for param, old in zip(params, before, strict=True):
            param.copy_(old)
            param.grad = None
    return moved / step
