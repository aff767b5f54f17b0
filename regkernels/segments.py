"""Tables of pointers, sizes and rows: the one thing both backends consume.

The unit of work is a *segment*: a contiguous run of elements with the addresses of its weight, gradient and states, and
the row of its hyper-parameters. A segment starts as one parameter; neighbours that are adjacent in all their buffers and
share a row are merged, which is what makes `regkernels.FlatParameters` fast.
"""

from __future__ import annotations

import torch
from torch import Tensor

INTERFACE = 2
"""Of the extension's functions; kInterface in csrc/table.h."""

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Weight types, in the order of csrc/table.h."""

RULES = ("sgd", "momentum", "adam", "amsgrad")
"""Optimizer rules, in the order of csrc/table.h; what they do is in `regkernels.reference.RULES`."""

FIELDS = ("weight", "gradient", "state0", "state1", "state2", "numel", "row", "total", "kind")
"""Columns of a table of segments (int64), in the order of csrc/table.h."""

SUMS = ("absolute", "square", "nonzeros", "gradient")
"""Columns of a table of sums (float64), in the order of csrc/table.h."""

WEIGHT, GRADIENT, STATE0, NUMEL, ROW, TOTAL, KIND = (
    FIELDS.index(name) for name in ("weight", "gradient", "state0", "numel", "row", "total", "kind")
)

EMPTY = 1
"""Stands for the address of a gradient without elements; 0 stands for a gradient that is None."""

_WEIGHT_BYTES = torch.tensor([dtype.itemsize for dtype in DTYPES], device="cpu")
_STATE_BYTES = torch.tensor([max(dtype.itemsize, 4) for dtype in DTYPES], device="cpu")


def kind(rule: str, dtype: torch.dtype) -> int:
    """The number that selects a kernel."""
    return RULES.index(rule) * len(DTYPES) + DTYPES.index(dtype)


def rule_and_dtype(kind: int) -> tuple[str, torch.dtype]:
    """What `kind` was made of."""
    rule, dtype = divmod(kind, len(DTYPES))
    return RULES[rule], DTYPES[dtype]


def merge(table: Tensor, may_follow: Tensor) -> Tensor:
    """Joins each segment with the one before it where they are adjacent in all buffers and agree in everything else.

    ``table``: int64, (segments, len(FIELDS)). ``may_follow``: bool, (segments,): False where two neighbours lie side by
    side by chance of the allocator only. Merging those would make a sum depend on that chance.
    """
    if len(table) < 2 or not bool(may_follow[1:].any()):
        return table
    before, after = table[:-1], table[1:]
    dtype = before[:, KIND] % len(DTYPES)
    weight_bytes = before[:, NUMEL] * _WEIGHT_BYTES[dtype]
    state_bytes = before[:, NUMEL] * _STATE_BYTES[dtype]
    joined = may_follow[1:] & (before[:, ROW:] == after[:, ROW:]).all(1)
    joined &= before[:, WEIGHT] + weight_bytes == after[:, WEIGHT]
    joined &= before[:, GRADIENT] + weight_bytes == after[:, GRADIENT]
    for column in range(STATE0, NUMEL):
        unused = before[:, column] == 0
        joined &= torch.where(unused, after[:, column] == 0, before[:, column] + state_bytes == after[:, column])
    starts = torch.cat([joined.new_ones(1), ~joined])
    merged = table[starts].clone()
    merged[:, NUMEL] = torch.zeros(len(merged), dtype=torch.int64, device="cpu").index_add_(
        0, starts.cumsum(0) - 1, table[:, NUMEL]
    )
    return merged
