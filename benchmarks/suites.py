"""Lists the questions by name: one module each, with ``cases(scope)``."""

from __future__ import annotations

SUITES = (
    "penalty_forward",
    "penalty_backward",
    "optimizer_step",
    "full_step",
    "low_precision",
    "many_tensors",
    "elements",
    "tensors",
    "stacked",
    "paths",
    "sharded",
    "threads",
    "first_step",
    "memory",
)
