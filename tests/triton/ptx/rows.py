"""Runs what computes rows of hyper-parameters from numbers on the device, on such as bring it into all branches."""

from __future__ import annotations

from typing import Any

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
    return _table(
        [Hyper.of({"lr": one}), Hyper.of(formulas)], 1 + COUNT
    )  # of which the first has less for a program to do


def awkward() -> dict[str, Tensor]:
    """Computes what the reference does not: torch's powers are not rounded correctly, and some of these are none. With negative numbers, halves, zeros, numbers without a fraction, and with pairs that are equal, greater and less."""
    x = Deferred.of(torch.arange(-COUNT // 2, COUNT - COUNT // 2, dtype=torch.float64) / 2.0)
    y = Deferred.of((torch.arange(COUNT) % 7 - 3).double())
    large = Deferred.of(2.0**52 + torch.arange(-COUNT // 2, COUNT - COUNT // 2).double() / 2.0)
    formulas = {
        "lr": x / y,
        "momentum": y / (x + 0.25),
        "scale": Deferred("floor", x),
        "decay": Deferred("floor", large) - Deferred("floor", -large),
        "gain": select(x > y, x - y, y * x),
        "shape": select(y > x, 1.0, select(Deferred("is_equal", x, y), -x, x)),
        "beta1": (x * 0.37) ** 3.0 + y**0.0,
        "beta2": 0.999 ** ((y + 3.0) * 1000.0) + (x * 1.1) ** (y + 3.0),
        "one_minus_beta2": select(y > 0.0, Deferred("power", y, x), Deferred("power", 1.1, y)),
        "eps": x % 3.0,
        "strength": (x * x).sqrt() - (y - x),
    }
    return _table([Hyper.of(formulas)], COUNT)


def _table(rows: list[Any], count: int) -> dict[str, Tensor]:
    if backends.name() == "reference":
        return {"table": torch.tensor(one_by_one(rows, CPU), dtype=torch.float64)}
    table = table_of_rows(rows, BatchMemory(CPU, 1), CPU)
    return {"table": table[: count * len(Hyper._fields)].view(count, -1)}
