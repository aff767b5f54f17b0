"""Runs what computes rows of hyper-parameters from numbers on the device, on such as bring it into all branches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from regkernels import backends
from regkernels.backends.triton.rows import table_of_rows
from regkernels.backends.triton.tables import BatchMemory
from regkernels.table.deferred import Deferred
from regkernels.table.hyper import Hyper, one_by_one
from tests.support import engine


def steps(rule: str) -> dict[str, Tensor]:
    """Takes steps with numbers that are on the device; the reference is given the same."""
    torch.manual_seed(4)
    params = [nn.Parameter(torch.randn(size)) for size in (3, 40)]
    there = backends.name() != "reference"
    strengths: list[dict[str, Any]] = [{"lr": 0.125, "l1": 0.0625}, {"lr": 0.03, "weight_decay": 0.2}]
    groups: list[dict[str, Any]] = [{"params": [p], **own} for p, own in zip(params, strengths, strict=True)]
    optimizer = engine.make(rule, groups, state_dtype=torch.bfloat16, seed=11)
    for group, dtype in zip(optimizer.param_groups, (torch.float32, torch.float64), strict=True):
        group["capturable"] = there
        if there:
            group["lr"] = torch.tensor(group["lr"], dtype=dtype)
    for _ in range(8):  # RAdam's variance is known then
        for param in params:
            param.grad = torch.randn(param.shape)
        optimizer.step()
    return engine.snapshot(optimizer)


def vectors() -> dict[str, Tensor]:
    """Computes more rows than a program does, with which stands one that the host knows."""
    rows = [Hyper(lr=0.5), Hyper.of({"lr": Deferred.of(torch.arange(100.0)) * 0.1})]
    if backends.name() == "reference":
        return {"table": torch.tensor(one_by_one(rows, torch.device("cpu")), dtype=torch.float64)}
    table = table_of_rows(rows, BatchMemory(torch.device("cpu"), 1), torch.device("cpu"))
    return {"table": table[: 101 * len(Hyper._fields)].view(101, -1)}


RUNS: dict[str, Callable[[], dict[str, Tensor]]] = {
    "steps of radam with tensors": partial(steps, "radam"),
    "steps of dampening with tensors": partial(steps, "dampening"),
    "rows of vectors": vectors,
}
