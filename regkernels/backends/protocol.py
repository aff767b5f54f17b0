"""Says what a backend has to do. The modules `cpu`, `eager` and `triton` are backends; they differ in who does the arithmetic only.

Numbers that a kernel computes are Python's where the host knows them, and tensors on the device where it would have to wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from regkernels.reference import Penalty
from regkernels.table.batch import Batch
from regkernels.table.grouping import GroupLayout
from regkernels.table.hyper import Scalar


class Backend(Protocol):
    """Computes on dense, real tensors of one device. Outputs named ``out`` have the layout of their inputs and may be these."""

    def update(self, batch: Batch, *, with_sums: bool) -> Any:
        """Makes the step of a batch: changes weights and states.

        Returns the sums of `regkernels.table.segments.SUMS` for each of ``batch.totals``, a list of tuples or a float64 tensor
        (totals, sums) on the device; without ``with_sums`` nothing that can be used.
        """

    def proximal(self, batch: Batch) -> None:
        """Shrinks the weights of a batch in the metric of a step that somebody else has made, as `attach_prox` does.

        `regkernels.prox` goes through `update`, by the rule "still".
        """

    def gradient_square_sum(self, batch: Batch) -> Scalar:
        """Returns the sum of the squares of all gradients, in float64."""

    def gradient_square_sums(self, batch: Batch, classes: int) -> Sequence[Scalar]:
        """Returns the sum of the squares of the gradients of each class of parameters (`table.segments.class_of_total`)."""

    def soft_threshold(self, x: Tensor, out: Tensor, threshold: float) -> None:
        """Computes ``out = sign(x) * max(|x| - threshold, 0)``."""

    def penalty(self, tensors: Sequence[Tensor], l1: float, l2: float) -> Tensor:
        """Returns ``l1 * sum |w| + l2 * sum w^2``, 0-dim."""

    def penalty_gradient(
        self, tensors: Sequence[Tensor], out: Sequence[Tensor], upstream: Tensor, absolute: float, square: float
    ) -> None:
        """Computes ``out = upstream * absolute * sign(w) + upstream * square * w``."""

    def value(self, penalty: Penalty, tensors: Sequence[Tensor]) -> Tensor:
        """Returns the sum of all terms, times the penalty's scale, 0-dim."""

    def value_gradient(
        self, penalty: Penalty, tensors: Sequence[Tensor], out: Sequence[Tensor], upstream: Tensor
    ) -> None:
        """Computes ``out``: ``upstream`` times the penalty's gradient."""

    def weighted(self, tensors: Sequence[Tensor], factors: Sequence[Tensor], strength: float) -> Tensor:
        """Returns ``strength * sum factor * |w|``; factors are in the compute type and in the layout of the tensors.

        Raises where a factor is negative or not finite, if the host can tell without waiting.
        """

    def weighted_gradient(
        self,
        tensors: Sequence[Tensor],
        factors: Sequence[Tensor],
        out: Sequence[Tensor],
        upstream: Tensor,
        strength: float,
    ) -> None:
        """Computes ``out = upstream * strength * factor * sign(w)``."""

    def group_norms(
        self,
        tensors: Sequence[Tensor],
        layouts: Sequence[GroupLayout],
        scales: Sequence[float],
        norms: Sequence[Tensor],
    ) -> Tensor:
        """Returns ``sum scale * ||w_g||`` over all groups, 0-dim; the norms go into ``norms``, float64 (groups,) per tensor."""

    def group_gradient(
        self,
        tensors: Sequence[Tensor],
        layouts: Sequence[GroupLayout],
        scales: Sequence[float],
        norms: Sequence[Tensor],
        out: Sequence[Tensor],
        upstream: Tensor,
    ) -> None:
        """Computes ``out = upstream * scale / ||w_g|| * w``, 0 for a group that is zero."""
