"""Runs what computes rows of hyper-parameters from numbers on the device, on such as bring it into all branches."""

from __future__ import annotations

import torch
from torch import Tensor

from regkernels import backends
from regkernels.backends.triton.rows import table_of_rows
from regkernels.backends.triton.tables import BatchMemory
from regkernels.table.deferred import Deferred
from regkernels.table.hyper import Hyper, one_by_one, select

CPU = torch.device("cpu")
COUNT = 70
"""Of rows: more than a program computes at a time."""


def computed() -> dict[str, Tensor]:
    """Computes rows by all operations, and one that the host knows; torch's powers are exact here, too."""
    x, y = (Deferred.of(torch.arange(1, COUNT + 1, dtype=dtype)) for dtype in (torch.float32, torch.float64))
    formulas = {
        "lr": x * 0.1 + y.sqrt() / 3.0,
        "beta1": 0.5**x,
        "one_minus_beta1": 1.0 - y**2.0,
        "step": x % 16.0,
        "eps": select(x > 50.0, y, 0.3),
        "one_minus_dampening": select(Deferred("is_equal", y, 1.0), 1.0, 0.7),
    }
    one = Deferred.of(torch.tensor(0.25, dtype=torch.float64)) * 2.0
    rows = [Hyper.of({"lr": one}), Hyper.of(formulas)]  # of which the first has less for a program to do
    if backends.name() == "reference":
        return {"table": torch.tensor(one_by_one(rows, CPU), dtype=torch.float64)}
    table = table_of_rows(rows, BatchMemory(CPU, 1), CPU)
    return {"table": table[: (1 + COUNT) * len(Hyper._fields)].view(1 + COUNT, -1)}
