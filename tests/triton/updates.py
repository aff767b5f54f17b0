"""The steps that are compiled, and which of them for which architecture."""

from __future__ import annotations

from typing import NamedTuple

import torch

from regkernels.table.formats import ROUNDINGS
from tests.support import cases, covering


class Update(NamedTuple):
    """What a step is compiled for. ``rule``: a key of `tests.support.cases.RULES`; ``wide``: states are not stored in bfloat16."""

    rule: str
    dtype: torch.dtype
    rounding: str = "nearest"
    wide: bool = True


ALWAYS = [Update(rule, dtype) for rule in ("sgd", "momentum", "adam", "amsgrad") for dtype in cases.DTYPES]
"""With sums and without."""

WITH_SUMS = [
    *(Update(rule, torch.float32) for rule in cases.RULES if rule.startswith(("rmsprop", "adagrad", "lion"))),
    Update("rmsprop_both", torch.bfloat16),
    *(Update("adam", torch.bfloat16, rounding) for rounding in ROUNDINGS if rounding != "nearest"),
    *(Update("adam", torch.float16, rounding) for rounding in ("stochastic", "master")),
    *(Update("adam", dtype, wide=False) for dtype in (torch.float32, torch.float16, torch.bfloat16)),
    *(Update("amsgrad", torch.bfloat16, rounding, wide=False) for rounding in ("stochastic", "master")),
]
"""The others: of the rules and formats those that need most."""

SHIFTED = [
    *(Update("amsgrad", dtype, "stochastic", wide=False) for dtype in cases.HALF),
    *(
        Update(rule, dtype, wide=False)
        for rule in ("adam", "rmsprop_both")
        for dtype in (torch.float32, torch.bfloat16)
    ),
    Update("rmsprop_both", torch.float16, "stochastic", wide=False),
]
"""With sums, and of parts of parameters that begin amid elements which share a random counter."""

BY_GROUPS = [
    *(Update("adam", dtype) for dtype in cases.DTYPES),
    *(Update(rule, torch.float32) for rule in ("sgd", "dampening", "amsgrad", "rmsprop_both", "adagrad")),
    Update("rmsprop_both", torch.float64),
    *(Update("adam", torch.bfloat16, rounding) for rounding in ("remainder", "master")),
    Update("amsgrad", torch.bfloat16, "stochastic", wide=False),
    Update("rmsprop_both", torch.float16, "stochastic", wide=False),
]
"""With sums, each for rows and for columns."""

SHARES = {"sm_80": (0, 3), "sm_90": (1, 3), "sm_100": (2, 3), "gfx942": (0, 2), "gfx950": (1, 2)}
"""Which part of each list is compiled for an architecture, and of how many: those of one compiler share a list, into whose parts
rules, dtypes and roundings are dealt. All for each takes half an hour, and `make kernels` does it."""

ANYWAY = [*(Update("sgd", dtype) for dtype in cases.DTYPES), Update("adam", torch.float32)]
"""What other kernels are launched beside."""

FURTHER = ("sm_86", "sm_89", "sm_120")
"""Relatives of these, of which the tests compile what takes the most registers alone."""


def taken(architecture: str, updates: list[Update]) -> list[Update]:
    share, parts = SHARES[architecture]
    dealt = covering.dealt(updates, range(parts))
    return [update for update, part in zip(updates, dealt, strict=True) if part == share or update in ANYWAY]
