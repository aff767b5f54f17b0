"""Solves points of the path of a small linear model with L1 from its features, without going through the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from regkernels.selection.active_set import lasso
from regkernels.selection.features import Features
from regkernels.selection.newton import flat_of, parts
from regkernels.selection.objective import Objective
from regkernels.selection.penalty import Penalty, l1_distance
from regkernels.selection.solver import ProximalNewton, Solution

_SHORTEST = 2.0**-20
_MOST_JOINING = 100
"""Zeros that may leave at once: the matrix of second derivatives is made for them and what is not zero."""


class _Place(NamedTuple):
    """Holds flat ``outputs``, the loss there, its gradient by them, and the graph to differentiate that once more."""

    outputs: Tensor
    loss: float
    gradient: Tensor
    graph: Tensor


class DirectLasso:
    """Takes Newton's steps for the loss, each to the exact minimum of a lasso, in units of the features.

    Args:
        objective: whose parameters each solution is written to.
        precise: the same in float64, which is computed in.
        features: of ``precise``.
        general: makes the solver that goes on where no step makes the objective smaller, as with a loss that is not convex.
    """

    def __init__(
        self,
        objective: Objective,
        precise: Objective,
        features: Features,
        penalty: Penalty,
        tolerance: float,
        max_steps: int,
        general: Callable[[], ProximalNewton],
    ) -> None:
        self._objective, self._loss, self._penalty = objective, precise.loss, penalty
        self._features, self._tolerance, self._max_steps = features, tolerance, max_steps
        inputs, self._targets, _ = next(iter(precise.batches))
        with torch.no_grad():
            self._shape = precise.model(inputs).shape
        self._all = torch.cat([features.columns, features.others], 1)
        own, self._own = flat_of(precise.params).detach(), features.columns.shape[1]
        weights, others = own[: self._own], own[self._own :]
        size = torch.where(features.inverse > 0, 1 / features.inverse, 0.0)
        self._x = torch.cat([weights * size, others + features.shift @ weights])
        self._general = general
        self._other: ProximalNewton | None = None
        self._place = self._place_of(self._x)
        self._bends: Tensor | None = None
        self._gram: Tensor | None = None

    def solve(self, strength: float) -> Solution:
        """Finds the weights for one strength."""
        if self._other is not None:
            return self._other.solve(strength)
        thresholds, decay = self._strengths(strength)
        steps = 0
        while True:
            place = self._place
            gradient = self._all.T @ place.gradient + decay * self._x
            violations = self._violations(self._x, gradient, thresholds)
            violation = violations.max().item()
            if violation <= self._tolerance or steps == self._max_steps:
                break
            steps += 1
            aim = self._aim(place, gradient, violations, thresholds, decay)
            found = self._along(place, aim - self._x, violation, thresholds, decay)
            if found is None:
                self._write()
                self._other = self._general()
                return self._other.solve(strength)
            self._x, self._place = found
        self._write()
        return Solution(place.loss, violation, steps)

    def _strengths(self, strength: float) -> tuple[Tensor, Tensor]:
        """Returns thresholds and weight decay in units of the features, 0 for what is not penalised."""
        own, weight_decay = self._penalty.strengths(strength)
        weights = self._objective.penalised
        factors = flat_of([torch.zeros_like(w) + self._penalty.threshold(own, i) for i, w in enumerate(weights)])
        inverse, rest = self._features.inverse, torch.zeros_like(self._x[self._own :])
        # Not the product alone: an infinite factor of a feature that says nothing.
        thresholds = torch.cat([torch.where(inverse == 0, 0.0, factors.detach().to(inverse) * inverse), rest])
        return thresholds, torch.cat([weight_decay * inverse.square(), rest])

    def _place_of(self, x: Tensor) -> _Place:
        outputs = (self._features.constant + self._all @ x).requires_grad_()
        loss = self._loss(outputs.view(self._shape), self._targets)
        (graph,) = torch.autograd.grad(loss, outputs, create_graph=True)
        return _Place(outputs, loss.item(), graph.detach(), graph)

    def _violations(self, x: Tensor, gradient: Tensor, thresholds: Tensor) -> Tensor:
        own = self._own
        distances = l1_distance(x[:own], gradient[:own], thresholds[:own], positive=self._penalty.positive)
        return torch.cat([distances, gradient[own:].abs()])

    def _kinked(self, thresholds: Tensor) -> Tensor:
        """Tells which weights are held at zero by something."""
        kinked = thresholds > 0
        if self._penalty.positive:
            kinked[: self._own] = True
        return kinked

    def _aim(self, place: _Place, gradient: Tensor, violations: Tensor, thresholds: Tensor, decay: Tensor) -> Tensor:
        """Returns the minimum of the second-order model over what is not zero, or has to leave zero."""
        x = self._x
        on = (x != 0) | (violations > 0)
        if int(on.sum()) > int((x != 0).sum()) + _MOST_JOINING:
            least = torch.where(x == 0, violations, 0.0).topk(_MOST_JOINING).values[-1]
            on = (x != 0) | (violations >= least) & (violations > 0)
        chosen = on.nonzero().flatten()
        matrix = self._matrix(place, chosen)
        matrix.diagonal().add_(decay[chosen])
        right = matrix @ x[chosen] - gradient[chosen]
        # A weight that must not be negative is held at zero even where nothing shrinks it.
        held = torch.where(self._kinked(thresholds), thresholds.clamp(min=torch.finfo(x.dtype).tiny), thresholds)
        numbers = [tensor.cpu().numpy() for tensor in (matrix, right, held[chosen], x[chosen])]
        aim = x.clone()
        aim[chosen] = torch.from_numpy(lasso(*numbers, positive=self._penalty.positive)).to(x)
        return aim

    def _matrix(self, place: _Place, chosen: Tensor) -> Tensor:
        """Returns second derivatives by some of the weights, made once for a loss whose own do not change."""
        bends = self._curvature(place)
        if self._bends is None or not torch.equal(bends, self._bends):
            self._bends, self._gram = bends, None
        if self._gram is None and self._all.shape[1] <= 4 * _MOST_JOINING:
            self._gram = self._product(bends, self._all)
        if self._gram is not None:
            return self._gram[chosen[:, None], chosen]
        return self._product(bends, self._all[:, chosen])

    def _product(self, bends: Tensor, columns: Tensor) -> Tensor:
        rows = columns.view(len(bends), -1, columns.shape[1])
        return columns.T @ (bends @ rows).reshape(columns.shape)

    def _curvature(self, place: _Place) -> Tensor:
        """Returns second derivatives of the loss by the outputs of each row, (rows, outputs, outputs), without negative curvature."""
        rows = self._shape[0]
        by_row = place.graph.view(rows, -1)
        if not place.graph.requires_grad:
            return torch.zeros(rows, by_row.shape[1], by_row.shape[1]).to(by_row)
        lines = [
            torch.autograd.grad(by_row[:, k].sum(), place.outputs, retain_graph=True)[0].view(rows, -1)
            for k in range(by_row.shape[1])
        ]
        bends = torch.stack(lines, 1)
        return bends.clamp(min=0) if len(lines) == 1 else bends

    def _along(
        self, place: _Place, move: Tensor, violation: float, thresholds: Tensor, decay: Tensor
    ) -> tuple[Tensor, _Place] | None:
        """Returns the first of ever shorter steps at which the objective is smaller, or, where rounding hides that, the violation."""
        value = self._value(place, self._x, thresholds, decay)
        rounding = 8 * torch.finfo(move.dtype).eps * abs(value)
        before, length = self._x, 1.0
        while length >= _SHORTEST:
            x = before + length * move
            new = self._place_of(x)
            change = self._value(new, x, thresholds, decay) - value
            if change < -rounding:
                return x, new
            left = self._violations(x, self._all.T @ new.gradient + decay * x, thresholds).max()
            if change <= rounding and left < violation:
                return x, new
            length /= 2
        return None

    def _value(self, place: _Place, x: Tensor, thresholds: Tensor, decay: Tensor) -> float:
        own = x.nonzero().flatten()  # an infinite threshold times 0 is no number
        x = x[own]
        return place.loss + (thresholds[own] @ x.abs() + decay[own] @ x.square() / 2).item()

    @torch.no_grad()
    def _write(self) -> None:
        """Gives the model its own weights."""
        weights = self._x[: self._own] * self._features.inverse
        others = self._x[self._own :] - self._features.shift @ weights
        for param, value in zip(
            self._objective.params, parts(torch.cat([weights, others]), self._objective.params), strict=True
        ):
            param.copy_(value)
