"""Reports how sparse a model is, parameter by parameter."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from regkernels.distributed.shards import is_dtensor
from regkernels.structure import computed, table

_HEADER = ("parameter", "shape", "zeros", "share", "zero rows", "zero columns", "l1 norm", "l2 norm")


class ParameterSparsity(NamedTuple):
    """Describes one parameter in a `SparsityReport`, or their total.

    A row is a slice along dimension 0 (an output neuron, a filter), a column one along dimension 1 (an input, an input channel); both
    counts are None for parameters with fewer than two dimensions.
    """

    name: str
    shape: tuple[int, ...]
    elements: int
    zeros: int
    rows: int | None
    zero_rows: int | None
    columns: int | None
    zero_columns: int | None
    l1_norm: float
    """Sum of absolute values, added in float64."""
    l2_norm: float
    """Root of the sum of squared absolute values, added in float64."""
    also_named: tuple[str, ...] = ()
    """Further names of the same parameter (tied weights), which is counted once."""

    @property
    def share(self) -> float:
        """Returns zeros per element, from 0 to 1; 0 without elements."""
        return self.zeros / self.elements if self.elements else 0.0


class SparsityReport(NamedTuple):
    """Holds what `regkernels.sparsity_report` has counted; prints as a table."""

    rows: tuple[ParameterSparsity, ...]
    """One per parameter, in the model's order."""
    totals: ParameterSparsity
    """Sums over ``rows``, with ``l2_norm`` the norm of all elements together; ``shape`` is empty."""

    def __getitem__(self, key: Any) -> Any:
        """Looks up ``report["fc1.weight"]``; with a number or slice, what a tuple would give."""
        if not isinstance(key, str):
            return tuple.__getitem__(self, key)
        for row in self.rows:
            if key == row.name or key in row.also_named:
                return row
        raise KeyError(f"no parameter {key!r}; there are {', '.join(row.name for row in self.rows) or 'none'}")

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Returns numbers by name and field, the totals under ``"total"``; plain Python, for JSON or a data frame."""
        return {row.name: row._asdict() | {"share": row.share} for row in (*self.rows, self.totals)}

    def __str__(self) -> str:
        return table.as_text(_HEADER, [_cells(row) for row in (*self.rows, self.totals)], left=2, last=True)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return table.as_html(_HEADER, [_cells(row) for row in (*self.rows, self.totals)], left=2)


def _cells(row: ParameterSparsity) -> tuple[str, ...]:
    def part(count: int | None, whole: int | None) -> str:
        return "" if count is None or whole is None else f"{count:,} of {whole:,}"

    return (
        " = ".join((row.name, *row.also_named)),
        " x ".join(map(str, row.shape)),
        f"{row.zeros:,}",
        f"{100 * row.share:.1f} %",
        part(row.zero_rows, row.rows),
        part(row.zero_columns, row.columns),
        f"{row.l1_norm:.4g}",
        f"{row.l2_norm:.4g}",
    )


def sparsity_report(model: nn.Module) -> SparsityReport:
    """Counts zeros, zero rows and zero columns of each parameter, and their norms.

    Rows are slices along dimension 0: output neurons, filters. Columns are slices along dimension 1: inputs, input channels. (In
    transposed convolutions it is the other way round: their dimension 0 is the input.) Tied parameters are counted once. Weights
    under `torch.nn.utils.prune` are counted with their masks, under the name that they have then, such as ``fc1.weight_orig``; those
    under other parametrizations as the parameters that they are made from.
    What can be removed is told by `regkernels.compact`.

    Parameters that are spread over ranks (`DTensor`, FSDP's) are gathered one after the other, and every rank gets the report of
    the whole model: call it on all of them.

    Args:
        model: any module; all its parameters are counted, frozen ones, too, in any dtype and on any device. Not changed.

    Returns:
        A `SparsityReport`: ``rows``, ``totals``, ``report["fc1.weight"]``, ``to_dict()``; ``print(report)`` shows a table.

    Raises:
        TypeError: for what is no module, or has parameters without values (on the meta device, or lazy ones).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    masks = computed.masks(model)
    names: dict[Tensor, list[str]] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        with_values(name, param)
        names.setdefault(param, []).append(name)
    measured = [_measured(param, [masks.get(name) for name in aliases], *aliases) for param, aliases in names.items()]
    return SparsityReport(tuple(measured), _total(measured))


def with_values(name: str, param: Tensor) -> None:
    """Raises where a parameter has no values to look at."""
    if is_lazy(param):
        raise TypeError(f"{name} has no shape yet; run the model once on a batch, then call this again")
    if param.is_meta:
        raise TypeError(f"{name} is on the meta device and has no values; load the weights first")


@torch.no_grad()
def _measured(param: Any, masks: list[Tensor | None], name: str, *also_named: str) -> ParameterSparsity:
    param = _whole(param)
    known = [_whole(mask) for mask in masks if mask is not None]
    if len(known) == len(masks):  # otherwise some module reads all elements
        param = param * sum(known).ne(0)
    size = param.detach().abs() if param.is_complex() else param.detach()
    rows = columns = zero_rows = zero_columns = None
    if param.dim() >= 2:
        rows, columns = param.shape[:2]
        zero_rows, zero_columns = (int(zero_slices(param, dim).sum()) for dim in (0, 1))
    zeros = param.numel() - int(torch.count_nonzero(param))
    l1_norm, l2_norm = (float(torch.linalg.vector_norm(size, order, dtype=torch.float64)) for order in (1, 2))
    return ParameterSparsity(
        name,
        tuple(param.shape),
        param.numel(),
        zeros,
        rows,
        zero_rows,
        columns,
        zero_columns,
        l1_norm,
        l2_norm,
        tuple(also_named),
    )


def _whole(tensor: Any) -> Any:
    return tensor.full_tensor() if is_dtensor(tensor) else tensor


def zero_slices(tensor: Tensor, dim: int) -> Tensor:
    """Tells which slices along ``dim`` have elements, all of them zero."""
    if tensor.numel() == 0:
        return torch.zeros(tensor.shape[dim], dtype=torch.bool, device=tensor.device)
    return ~(tensor.detach() != 0).transpose(0, dim).flatten(1).any(1)


def _total(rows: list[ParameterSparsity]) -> ParameterSparsity:
    def total(values: list[int | None]) -> int | None:
        counted = [value for value in values if value is not None]
        return sum(counted) if counted else None

    return ParameterSparsity(
        "total",
        (),
        sum(row.elements for row in rows),
        sum(row.zeros for row in rows),
        total([row.rows for row in rows]),
        total([row.zero_rows for row in rows]),
        total([row.columns for row in rows]),
        total([row.zero_columns for row in rows]),
        math.fsum(row.l1_norm for row in rows),
        math.hypot(*(row.l2_norm for row in rows)),
    )
