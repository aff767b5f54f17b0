"""Models the objective to second order, in coordinates of its own: whole matrices for few parameters, products for many."""

from __future__ import annotations

import torch
from torch import Tensor

from regkernels.selection.coordinates import Coordinates
from regkernels.selection.newton import Product, conjugate_gradients, flat_of, parts, second_order
from regkernels.selection.objective import Objective
from regkernels.selection.penalty import Penalty

_DAMPING, _FORCING = 1e-3, 1e-1
"""Of a Newton step's model, as a share of the largest curvature, and of the accuracy to which it is minimised."""
_SINGULAR = 1e-9
"""The smallest pivot, as a share of the largest, of a model that is solved without that bit of curvature."""
_POWER_ITERATIONS = 20
_FEW = 256
"""Parameters whose whole Hessian is cheaper than the products that conjugate gradients would take."""


def curved(objective: Objective, coordinates: Coordinates) -> Product:
    """Returns the Hessian of f at the present weights, in the coordinates, times a vector or each row of a matrix."""
    _, product = second_order(objective, objective.params)
    return lambda flat: coordinates.pull(product(coordinates.push(flat)))


class SecondOrder:
    """Finds the minimiser of the second-order model on the weights where the penalty has derivatives.

    The Hessian of few parameters is kept for as long as steps by it succeed: that of least squares is the same everywhere.
    ``scale``: of the penalty's gradient in the coordinates, against which violations are measured.
    """

    def __init__(self, objective: Objective, penalty: Penalty, coordinates: Coordinates) -> None:
        self._objective, self._penalty, self._coordinates = objective, penalty, coordinates
        self._matrix: Tensor | None = None
        self.scale = 0.0

    def largest(self) -> float:
        """Estimates the largest curvature of f at the present weights; of many parameters from below, by power iteration; > 0."""
        product = self._product()
        like = flat_of(self._objective.params).detach()
        # Fixed, so that no random number is drawn, and without a pattern that an eigenvector could be orthogonal to.
        vector = torch.arange(1, len(like) + 1, dtype=like.dtype, device=like.device).mul(12.9898).sin()
        norm = 1.0
        for _ in range(_POWER_ITERATIONS):
            vector = product(vector / torch.linalg.vector_norm(vector))
            norm = torch.linalg.vector_norm(vector).item()
            if not 0 < norm < float("inf"):
                return 1.0
        return norm

    def judge(self, good: bool) -> None:
        """Forgets the Hessian after a step that did not go as it had said."""
        if not good:
            self._matrix = None

    def direction(
        self, strength: float, violation: float, weights: list[Tensor], gradients: list[Tensor], curvature: float
    ) -> list[Tensor]:
        """Points to the minimiser, and nowhere at the other weights. ``weights``: the penalised ones, whose signs count.

        The model is made convex by a bit of curvature, which vanishes with the violation (Levenberg and Marquardt): with more
        weights than rows its Hessian is singular.
        """
        objective, penalty, coordinates = self._objective, self._penalty, self._coordinates
        own, params = len(objective.penalised), objective.params
        others = len(coordinates.inverse_others)
        free = [penalty.differentiable(strength, i, w) for i, w in enumerate(weights)]
        mask = torch.cat(
            [flat_of(free) & (coordinates.inverse != 0), torch.ones(others, dtype=torch.bool, device=free[0].device)]
        )
        smooth = [
            g + penalty.gradient(strength, i, w) for i, (g, w) in enumerate(zip(gradients, weights, strict=False))
        ]
        right = torch.where(mask, -coordinates.pull(flat_of([*smooth, *gradients[own:]])), 0.0)
        remaining = min(1.0, violation / max(self.scale, violation))
        damping = _DAMPING * curvature * remaining
        product = self._product()

        def model(flat: Tensor) -> Tensor:
            own_part = parts(flat[: len(coordinates.inverse)] * coordinates.inverse, weights)
            added = flat_of([penalty.hessian_product(strength, w, v) for w, v in zip(weights, own_part, strict=True)])
            image = product(flat) + damping * flat
            image = image + torch.cat([added * coordinates.inverse, added.new_zeros(others)])
            return torch.where(mask, image, 0.0)

        found = self._solved(strength, mask, right, damping)
        if found is None:
            found = conjugate_gradients(model, right, _FORCING * remaining)
        return parts(coordinates.push(found), params)

    def _product(self) -> Product:
        size = len(self._coordinates.inverse) + len(self._coordinates.inverse_others)
        if size > _FEW:
            return curved(self._objective, self._coordinates)
        if self._matrix is None:
            like = self._coordinates.inverse
            identity = torch.eye(size, dtype=like.dtype, device=like.device)
            self._matrix = curved(self._objective, self._coordinates)(identity).detach()
        matrix = self._matrix
        return lambda flat: matrix @ flat

    def _solved(self, strength: float, mask: Tensor, right: Tensor, damping: float) -> Tensor | None:
        """Solves by the matrix, where there is one, the penalty adds to its diagonal only, and it is positive definite."""
        if self._matrix is None or self._penalty.groups is not None:
            return None
        rows = mask.nonzero().flatten()
        decay = self._penalty.strengths(strength)[1] * self._coordinates.inverse.square()
        diagonal = torch.cat([decay, torch.zeros_like(self._coordinates.inverse_others)])
        matrix = self._matrix[rows][:, rows] + diagonal[rows].diag()
        factor, failed = torch.linalg.cholesky_ex(matrix)
        pivots = factor.diagonal().square()
        if failed or pivots.min() < _SINGULAR * pivots.max():
            factor, failed = torch.linalg.cholesky_ex(matrix + damping * torch.ones_like(pivots).diag())
        if failed:
            return None
        found = torch.zeros_like(right)
        found[rows] = torch.cholesky_solve(right[rows, None], factor)[:, 0]
        return found
