"""Computes the rows of hyper-parameters that one shrinkage needs on one device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regkernels import validation
from regkernels.attach.sources import Source, Step
from regkernels.table.hyper import Hyper, Scalar, as_float, largest_shrink, number


class Rows:
    """Collects the rows of a step, each but once where the host can tell.

    Attributes:
        rows: those collected so far.
    """

    def __init__(self, skip: Scalar) -> None:
        """Begins with none. ``skip``: not 0 on the device where the step was left out."""
        self.rows: list[Hyper] = []
        self._count = 0  # of rows that these stand for
        self._skip = skip

    def computed(
        self, group: Mapping[str, Any], metric: str, source: Source, states: Sequence[Mapping[str, Any]]
    ) -> list[int | None]:
        """Returns the row of each parameter of a param group, by its counts; None where no step was made yet."""
        columns = [[state[name] for state in states] for name in source.counts]
        if any(_stay(column, group) for column in columns):
            return self._on_device(group, metric, source, columns)
        counts = list(zip(*([as_float(value) for value in column] for column in columns), strict=True))
        known: dict[tuple[float, ...], int | None] = {}
        for key in counts or [()]:
            if key not in known:
                made = not key or key[0] > 0
                known[key] = self._add(group, metric, source.step(group, *key)) if made else None
        return [known[key] for key in counts or [()] * len(states)]

    def given(
        self, group: Mapping[str, Any], step: float | Tensor, param: Tensor, name: str
    ) -> tuple[str, tuple[Tensor, ...], int]:
        """Returns metric, operands and row for what a user's function has returned for a parameter."""
        if not isinstance(step, Tensor) or step.dim() == 0:
            validation.nonnegative(f"what metric has returned for {name}", step, wait=False)
            # It is read after the last parameter's, and a function may use one tensor for all of them.
            own = step.clone() if isinstance(step, Tensor) else step
            return "constant", (), self._add(group, "constant", Step(number(own, group)))
        if step.shape != param.shape or not step.is_floating_point() or step.layout != torch.strided:
            raise ValueError(
                f"metric has returned a tensor of shape {tuple(step.shape)}, {step.dtype} and {step.layout} for {name}, whose shape "
                f"is {tuple(param.shape)}: return a number, or a dense floating-point tensor of the parameter's shape"
            )
        return "direct", (step.detach(),), self._add(group, "direct", Step(1.0))

    def _on_device(
        self, group: Mapping[str, Any], metric: str, source: Source, columns: Sequence[Sequence[Any]]
    ) -> list[int | None]:
        """Adds a row for each parameter, all of them in one `Hyper` of vectors: the host does not know which counts are equal."""
        vectors = [torch.stack([_scalar(value) for value in column]).double() for column in columns]
        first = self._append(Hyper.of(self._fields(group, metric, source.step(group, *vectors))))
        return list(range(first, self._count))

    def _add(self, group: Mapping[str, Any], metric: str, step: Step) -> int:
        """Returns the number of a row, which is added unless it is the last one."""
        row = Hyper.of(self._fields(group, metric, step))
        if self.rows and not isinstance(self._skip, Tensor) and _equal(row, self.rows[-1]):
            return self._count - 1
        return self._append(row)

    def _append(self, row: Hyper) -> int:
        """Returns the number of the first row that ``row`` stands for."""
        self.rows.append(row)
        self._count += row.multiplicity
        return self._count - row.multiplicity

    def _fields(self, group: Mapping[str, Any], metric: str, step: Step) -> dict[str, Any]:
        """Returns the fields of `Hyper` for a shrinkage by ``step``."""
        l1, weight_decay = (number(group[key], group) for key in ("l1", "prox_weight_decay"))
        fields: dict[str, Any] = {"lr": step.lr, "skip": self._skip}
        if metric == "constant":
            fields["threshold"] = step.lr * step.gain * l1
            fields["shrink_divisor"] = 1.0 + step.lr * step.gain * weight_decay
            return fields
        fields["threshold_per_step"] = step.gain * l1
        fields["shrink_per_step"] = step.gain * weight_decay
        # Where the variance of gradients vanishes, or a user's function says the step, moves have no limit either.
        if metric not in ("centered", "direct"):
            unit = step.lr * step.gain if step.unit is None else step.unit
            fields["largest_shrink"] = largest_shrink(group, unit)
        return {**fields, "inverse_sqrt_bias2": step.inverse_sqrt_bias2, "eps": step.eps}


def _stay(counts: Sequence[Any], group: Mapping[str, Any]) -> bool:
    """Tells whether counts have to stay on their device, as nobody is to wait for them."""
    if group.get("capturable"):
        return any(isinstance(value, Tensor) for value in counts)
    return any(isinstance(value, Tensor) and not value.is_cpu for value in counts)


def _equal(row: Hyper, other: Hyper) -> bool:
    """Tells whether two rows are known to be equal: numbers that only a device knows are not."""
    return all(
        isinstance(a, (int, float)) and isinstance(b, (int, float)) and a == b for a, b in zip(row, other, strict=True)
    )


def _scalar(count: Any) -> Tensor:
    """Returns a count as a 0-dim tensor; where it is one already, nothing is called for it."""
    if isinstance(count, Tensor) and not count.dim():
        return count
    return torch.as_tensor(count).reshape(())
