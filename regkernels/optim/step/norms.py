"""Sums over gradients and weights of plans that are not built: building creates states, and the step may be left out."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from regkernels import backends, reference
from regkernels.optim.step.entry import Entry, real
from regkernels.optim.step.plan import Plan
from regkernels.table import segments


def are_finite(plans: Iterable[Plan]) -> bool:
    """Tells whether the norm of all gradients is finite, as far as the host knows without waiting for a device."""
    return math.isfinite(sum(map(sum, square_sums_on_host(plans, 1))))


def square_sums_on_host(plans: Iterable[Plan], classes: int) -> list[list[float]]:
    """Returns the sum of the squares of the gradients of each class, for each plan whose gradients the host can look at without
    waiting for a device."""
    found = []
    for plan in plans:
        if not backends.is_asynchronous(plan.device):
            of_classes = [0.0] * classes
            for entry in sorted(plan.entries, key=lambda entry: entry.number):
                if entry.grad is not None:
                    norm = _norm(entry.gradient_at_hand())
                    of_classes[segments.class_of_total(entry.total, plan.totals, classes)] += norm * norm
            found.append(of_classes)
    return found


def sums(plan: Plan) -> list[list[float]]:
    """Returns `regkernels.table.segments.SUMS` for each total, over the parameters that have a gradient."""
    totals = segments.no_sums(plan.totals)
    for entry in sorted(plan.entries, key=lambda entry: entry.number):
        if entry.grad is not None:
            norm, weight = _norm(entry.gradient_at_hand()), entry.own.resolve_conj()
            found = (*reference.sums([real(weight)]), norm * norm, _zero_groups(entry, weight))
            segments.add_sums(totals, entry.total, found)
    return totals


def _zero_groups(entry: Entry, weight: Tensor) -> float:
    """Counts the groups of an entry that are zero; 0 where it has none."""
    if not entry.by_groups:
        return 0.0
    laid_out = torch.empty_like(entry.weight, device="cpu")  # that of a staged entry has no values yet
    return float(reference.zero_groups(laid_out.copy_(weight), entry.layout))


def _norm(tensor: Tensor) -> float:
    """Returns the Euclidean norm, added up in float64."""
    dtype = torch.complex128 if tensor.is_complex() else torch.float64
    return float(torch.linalg.vector_norm(tensor.detach(), dtype=dtype))
