"""Picks the cases that stand for a suite: in docs/benchmarks.md's table, in README.md's short one and in the picture of bars."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks import case
from benchmarks.record import Record, Row

# Suite and how the name of a case begins. Where a record has no such case, as after a quick run: the same of another
# model, or else anything of the suite that no other headline has taken.
TABLE = (
    ("optimizer_step", "adamw, float32: gpt2-small"),
    ("optimizer_step", "adamw, float32: resnet50"),
    ("optimizer_step", "momentum, float32: gpt2-small"),
    ("full_step", "adamw, L1 and L2: gpt2-small"),
    ("full_step", "adamw, L1, L2, clipping and logging: gpt2-small"),
    ("full_step", "adamw, L1, L2, clipping and logging: resnet50"),
    ("penalty_forward", "elastic net, float32: gpt2-small"),
    ("penalty_backward", "elastic net, float32: gpt2-small"),
    ("many_tensors", "adamw: 1000x1000"),
    ("many_tensors", "adamw: 2000x64"),
)
SHORT = (
    ("optimizer_step", "adamw, float32: gpt2-small"),
    ("full_step", "adamw, L1 and L2: gpt2-small"),
    ("full_step", "adamw, L1, L2, clipping and logging: resnet50"),
    ("penalty_backward", "elastic net, float32: gpt2-small"),
    ("many_tensors", "adamw: 2000x64"),
)
BARS = (
    ("optimizer_step", "adamw, float32: gpt2-small"),
    ("full_step", "adamw, L1 and L2: gpt2-small"),
    ("full_step", "adamw, L1, L2, clipping and logging: gpt2-small"),
    ("penalty_backward", "elastic net, float32: gpt2-small"),
)


def headlines(record: Record, wanted: Iterable[tuple[str, str]]) -> list[list[Row]]:
    """Returns the rows of each case that is wanted and there."""
    cases: dict[tuple[str, str], list[Row]] = {}
    for row in record.rows:
        cases.setdefault((row.suite, row.case), []).append(row)
    found: dict[tuple[str, str], tuple[str, str] | None] = dict.fromkeys(wanted)
    for nearly in (lambda begin: begin, lambda begin: begin.rpartition(": ")[0], lambda begin: ""):
        for (suite, begin), have in found.items():
            if have is None:
                fitting = (key for key in cases if key[0] == suite and key[1].startswith(nearly(begin)))
                found[suite, begin] = next((key for key in fitting if key not in found.values()), None)
    return [cases[key] for key in found.values() if key is not None]


def is_wrong(row: Row) -> bool:
    """Tells whether it is wrong on what is timed; with gradients of another layout it may be and is timed all the same."""
    return case.is_wrong(row.note)


def fastest(rows: Sequence[Row]) -> Row | None:
    """Returns the fastest of those that compute the right thing."""
    return min((row for row in rows if not is_wrong(row)), key=lambda row: row.ms, default=None)
