"""Takes a linear model apart: what its output gains with each of its parameters, a column for each."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from regkernels.selection.coordinates import NOTHING
from regkernels.selection.newton import flat_of, parts
from regkernels.selection.objective import Objective

_MOST_NUMBERS = 2**22


class Features(NamedTuple):
    """Describes outputs ``constant + columns @ v + others @ u``, flat, of a model whose penalised weights are ``w = v * inverse``.

    The columns have a mean square of one and no part along ``others`` (no mean, where there is a bias): the model's own unpenalised parameters
    are ``u - shift @ w``. Columns that say nothing which ``others`` do not are 0, and so is their ``inverse``. ``rounding``: by how much a
    column is larger than what is left of it.
    """

    constant: Tensor
    columns: Tensor
    others: Tensor
    inverse: Tensor
    shift: Tensor
    rounding: float


def features(objective: Objective) -> Features | None:
    """Returns the features of a model that is linear in its parameters; None of data in batches, and where there are too many numbers."""
    if not objective.batches.whole:
        return None
    inputs, _, _ = next(iter(objective.batches))
    params, own = objective.params, sum(param.numel() for param in objective.penalised)
    names = {id(param): name for name, param in objective.model.named_parameters()}
    count = sum(param.numel() for param in params)

    def outputs(flat: Tensor) -> Tensor:
        given = {names[id(p)]: part for p, part in zip(params, parts(flat, params), strict=True)}
        return functional_call(objective.model, given, (inputs,)).flatten()  # type: ignore[no-any-return]

    with torch.no_grad():
        constant = outputs(flat_of([torch.zeros_like(param) for param in params]))
        if constant.numel() * count > _MOST_NUMBERS:
            return None
        identity = torch.eye(count, dtype=constant.dtype, device=constant.device)
        columns = vmap(outputs)(identity).T - constant[:, None]
        return _standardised(constant, columns[:, :own], columns[:, own:], _shares(objective, constant))


def _shares(objective: Objective, constant: Tensor) -> Tensor:
    """Returns the share of the data that each output is, (outputs,): they add up to the outputs per row."""
    weights = objective.batches.weights
    rows = objective.batches.rows if weights is None else len(weights)
    of_rows = torch.full((rows,), 1 / rows) if weights is None else weights / weights.sum()
    return of_rows.to(constant).repeat_interleave(len(constant) // rows)


def _standardised(constant: Tensor, columns: Tensor, others: Tensor, shares: Tensor) -> Features:
    root = shares.sqrt()[:, None]
    sizes = (root * columns).norm(dim=0)
    shift = torch.linalg.pinv(root * others) @ (root * columns)
    columns = columns - others @ shift
    left = (root * columns).norm(dim=0)
    inverse = torch.where(left > NOTHING * sizes, 1 / left, 0.0)
    rounding = max(1.0, (sizes * inverse).max().item())
    return Features(constant, columns * inverse, others, inverse, shift, rounding)
