"""The eager reference behind the calls of the penalties beyond L1 and L2."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from regkernels import reference
from regkernels.reference.values import Penalty
from regkernels.table.grouping import GroupLayout


def value(penalty: Penalty, tensors: Sequence[Tensor]) -> Tensor:
    """The sum of all terms of dense tensors, times the penalty's scale: 0-dim."""
    return reference.scaled_total(reference.value_sum(penalty, tensors), penalty.scale, tensors)


def value_gradient(penalty: Penalty, tensors: Sequence[Tensor], out: Sequence[Tensor], upstream: Tensor) -> None:
    """``upstream`` times the penalty's gradient, into ``out``: dense tensors of equal layout."""
    factor = upstream.item()
    for w, o in zip(tensors, out, strict=True):
        o.copy_(reference.value_gradient(penalty, w, factor))


def weighted(tensors: Sequence[Tensor], factors: Sequence[Tensor], strength: float) -> Tensor:
    """``strength * sum factor * |w|``; ``factors`` are in the compute type and in the layout of ``tensors``."""
    total, refused = reference.weighted_sum(tensors, factors)
    reference.check_refused(refused)
    return reference.scaled_total(total, strength, tensors)


def weighted_gradient(
    tensors: Sequence[Tensor], factors: Sequence[Tensor], out: Sequence[Tensor], upstream: Tensor, strength: float
) -> None:
    """``out = upstream * strength * factor * sign(w)``."""
    scale = upstream.item() * strength
    for w, factor, o in zip(tensors, factors, out, strict=True):
        o.copy_(reference.weighted_gradient(w, factor, scale))


def group_norms(
    tensors: Sequence[Tensor], layouts: Sequence[GroupLayout], scales: Sequence[float], norms: Sequence[Tensor]
) -> Tensor:
    """``sum scale * ||w_g||`` over all groups, 0-dim; the norms themselves go into ``norms``, float64 (groups,) per tensor."""
    total = 0.0
    for w, layout, scale, out in zip(tensors, layouts, scales, norms, strict=True):
        out.copy_(reference.group_norms(w, *layout))
        total += scale * out.sum().item() if scale else 0.0
    return reference.scaled_total(total, 1.0, tensors)


def group_gradient(
    tensors: Sequence[Tensor],
    layouts: Sequence[GroupLayout],
    scales: Sequence[float],
    norms: Sequence[Tensor],
    out: Sequence[Tensor],
    upstream: Tensor,
) -> None:
    """``out = upstream * scale / ||w_g|| * w``, 0 for a group that is zero."""
    factor = upstream.item()
    for w, layout, scale, of, o in zip(tensors, layouts, scales, norms, out, strict=True):
        o.copy_(reference.group_gradient(w, reference.group_factors(of, factor * scale), *layout))
