"""Says what gradients are multiplied by, and whether a step is to be left out: clipping and torch.amp.GradScaler.

A number that only the device knows stays a tensor there; nothing here waits for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from regkernels import backends
from regkernels.optim.options import Options
from regkernels.optim.step.plan import Plan
from regkernels.table.hyper import Number, Scalar, as_float, clip_factor, deferred


class Scaling(NamedTuple):
    """Says what the gradients of one step are multiplied by, and whether it is left out."""

    factor: Number = 1.0  # for every gradient
    inverse_scale: Scalar = 1.0  # the scaler's part of it
    skip: Scalar = 0.0  # not 0: the step is left out
    has_norm: bool = False  # what is asked for by the norm of all gradients is in it

    @property
    def skips(self) -> bool:
        """Tells whether the host knows that the step is left out."""
        return not isinstance(self.skip, Tensor) and self.skip != 0

    @classmethod
    def handed_over(cls, optimizer: torch.optim.Optimizer) -> Scaling:
        """Reads what torch.amp.GradScaler has set on the optimizer: ``grad_scale`` (None: it has divided the gradients itself)
        and ``found_inf``."""
        attributes = vars(optimizer)
        scale, found_inf = (_number(attributes.get(name)) for name in ("grad_scale", "found_inf"))
        inverse_scale = 1.0 if scale is None else _inverse(scale)
        factor = deferred(inverse_scale) if isinstance(inverse_scale, Tensor) else inverse_scale
        return cls(factor, inverse_scale, 0.0 if found_inf is None else found_inf)

    def on(self, device: torch.device) -> Scaling:
        """Returns it for parameters on ``device``; on the CPU in numbers: a step there waits for a device that knows a part of it."""
        if not backends.is_asynchronous(device):
            return Scaling(as_float(self.factor), as_float(self.inverse_scale), as_float(self.skip), self.has_norm)
        values = (self.inverse_scale, self.skip)
        inverse_scale, skip = (value.to(device) if isinstance(value, Tensor) else value for value in values)
        return Scaling(self.factor, inverse_scale, skip, self.has_norm)

    def with_norm(self, options: Options, plans: Sequence[Plan]) -> Scaling:
        """Returns it with what ``max_grad_norm`` and ``skip_nonfinite`` ask for, by the norm of the gradients of ``plans``."""
        if self.skips or not plans or (options.max_grad_norm is None and not options.skip_nonfinite):
            return self
        return self.by(
            options, _total(backends.backend_for(plan.device).gradient_square_sum(plan.batch()) for plan in plans)
        )

    def by(self, options: Options, square_sum: Scalar) -> Scaling:
        """Returns it with what they ask for, by the sum of the squares of all gradients."""
        factor, skip = self.factor, self.skip
        if options.max_grad_norm is not None:
            known = deferred(square_sum) if isinstance(square_sum, Tensor) else square_sum
            factor = factor * clip_factor(known * self.inverse_scale * self.inverse_scale, options.max_grad_norm)
        if options.skip_nonfinite:
            skip = _either(skip, _is_not_finite(square_sum))
        return self._replace(factor=factor, skip=skip, has_norm=True)


def _inverse(scale: Scalar) -> Scalar:
    """Returns 1 / scale, infinity for one that backed off until it was 0, as on a device; such a step is left out."""
    if isinstance(scale, Tensor):
        return 1.0 / scale
    return 1.0 / scale if scale else math.inf


def _number(value: Tensor | float | None) -> Scalar | None:
    """Returns a number that a scaler has set: a float, or a 0-dim float64 tensor where only a device knows it."""
    if isinstance(value, Tensor):
        return float(value.item()) if value.is_cpu else value.detach().double().reshape(())
    return value


def _total(sums: Iterable[Scalar]) -> Scalar:
    """Adds numbers of several devices, on the first of them that is not the host."""
    found = list(sums)
    devices = [square_sum.device for square_sum in found if isinstance(square_sum, Tensor)]
    if len(found) > 1 and devices:
        found = [_moved(square_sum, devices[0]) for square_sum in found]
    return sum(found[1:], start=found[0])


def _moved(value: Scalar, device: torch.device) -> Tensor:
    """Returns a number on a device. What the host knows travels as an argument: a copy of it would make the host wait."""
    if isinstance(value, Tensor):
        return value.to(device)
    return torch.full((), value, dtype=torch.float64, device=device)


def _is_not_finite(value: Scalar) -> Scalar:
    if isinstance(value, Tensor):
        return value.isfinite().logical_not().double()
    return float(not math.isfinite(value))


def _either(a: Scalar, b: Scalar) -> Scalar:
    """Returns a number that is not 0 where one of the two is not."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.maximum(b.to(a.device))
    known, other = (b, a) if isinstance(a, Tensor) else (a, b)
    return known or other  # never a tensor that is looked at
