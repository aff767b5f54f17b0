"""The second stage of sums, over more chunks than small tensors have."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from regkernels import backends
from regkernels.backends.triton import architectures
from regkernels.backends.triton import launch as launching
from regkernels.backends.triton.kernels import sums, values
from regkernels.table.segments import SUMS

Outcome = dict[str, Tensor]

_CHUNKS = 9001


def _second_stage(kernel: Any, weights: Sequence[float], dtype: torch.dtype, *numbers: float) -> Outcome:
    """Adds the rows of partial sums, each times its weight."""
    torch.manual_seed(13)
    outcome: Outcome = {}
    for chunks in (_CHUNKS, 1, 0):
        partials = torch.randn(len(weights), chunks, dtype=torch.float64)
        out = torch.zeros((), dtype=dtype)
        if backends.name() == "reference":
            out.copy_(partials.sum(1) @ torch.tensor(weights, dtype=torch.float64))
        else:
            shape = architectures.of_device(out.device).second_stage
            launching.launch(kernel, (1,), shape, torch.float64, partials, out, chunks, *numbers)
        outcome[f"value of {chunks} chunks"] = out
    return outcome


def _totals() -> Outcome:
    torch.manual_seed(13)
    partials = torch.randn(len(SUMS), _CHUNKS, dtype=torch.float64)
    totals = torch.zeros(2, len(SUMS), dtype=torch.float64)
    ranges = torch.tensor([[[0, 5000], [5000, 5007]], [[5007, 5007], [5007, _CHUNKS]]], dtype=torch.int32)
    if backends.name() == "reference":
        return {"value": torch.stack([partials[:, :5007].sum(1), partials[:, 5007:].sum(1)])}
    shape = architectures.of_device(totals.device).second_stage
    grid = (2, len(SUMS))
    launching.launch(sums.add_totals, grid, shape, torch.float64, partials, totals, _CHUNKS, ranges, 2)
    return {"value": totals}


def _runs() -> Outcome:
    torch.manual_seed(13)
    partials = torch.randn(2, _CHUNKS, dtype=torch.float64)
    runs = [[0, 5000], [5000, 5007], [5007, _CHUNKS]]
    if backends.name() == "reference":
        return {"value": torch.stack([partials[:, first:end].sum(1) for first, end in runs], 1)}
    of_runs = torch.zeros(2, len(runs), dtype=torch.float64)
    shape = architectures.of_device(of_runs.device).second_stage
    table = torch.tensor(runs, dtype=torch.int32)
    launching.launch(sums.add_runs, (len(runs), 2), shape, torch.float64, partials, of_runs, _CHUNKS, len(runs), table)
    return {"value": of_runs}


def found() -> Iterator[tuple[str, tuple[Hashable, ...], Callable[[], Outcome]]]:
    """Yields what each is called, its facts, and what runs it."""
    yield ("add_runs", ("add_runs",), _runs)
    yield ("add_totals", ("add_totals",), _totals)
    yield ("square_sum", ("square_sum",), partial(_second_stage, sums.square_sum, (1.0,), torch.float64))
    for dtype in (torch.float32, torch.float64):
        name = str(dtype)[6:]
        for l1, l2 in ((1.0, 0.2), (0.3, 1.0)):
            run = partial(_second_stage, sums.penalty, (l1, l2), dtype, l1, l2)
            yield (f"penalty {name} {l1} {l2}", ("second stage of penalty", dtype, l1), run)
        run = partial(_second_stage, values.total, (0.7,), dtype, 0.7)
        yield (f"total {name}", ("total", dtype), run)
