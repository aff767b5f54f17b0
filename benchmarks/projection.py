"""Projects what a step would hold, move and send on many GPUs: formulas, and the measured rate of one device.

Memory and bytes follow from the shapes (`benchmarks.sharding`) and the accounting of the benchmarks (`benchmarks.building`).
Milliseconds are bytes that the fullest rank has to move / a rate: that of the same step in the committed record of a machine, or
the one that is given. No rate is guessed, and time that ranks spend on messages is not in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import building, sharding
from benchmarks.bench_low_precision import HALF, Format
from benchmarks.peers import Task
from benchmarks.printing import Console, Table
from benchmarks.record import RESULTS, Record
from benchmarks.sharding import MODELS, Layout, Model, Traffic
from benchmarks.tables import figures, machine_and_threads
from regkernels.optim.step.exchange import MARKS
from regkernels.table.segments import SUMS

RECORD = RESULTS / "amd-epyc" / "cpu-2-threads.json"

FORMATS = {
    "AdamW, float32": Format("AdamW", 2, torch.float32),
    "AdamW, bf16, remainder": Format("AdamW", 2, HALF, "remainder"),
    "AdamW, bf16, stochastic": Format("AdamW", 2, HALF, "stochastic"),
    "AdamW, all in bf16": Format("AdamW", 2, HALF, "stochastic", HALF),
    "Lion, float32": Format("Lion", 1, torch.float32),
}

SHOWN = tuple(label for label in FORMATS if label != "AdamW, bf16, stochastic")
"""By case; more would not fit on a page."""

CASES = (
    ("1 B", Layout(8)),
    ("10 B", Layout(64)),
    ("10 B", Layout(8, replicas=8)),
    ("100 B", Layout(512)),
    ("100 B", Layout(64, replicas=8)),
    ("100 B", Layout(64, tensor=8)),
    ("1 T", Layout(4096)),
    ("1 T", Layout(512, tensor=8)),
    ("1 T", Layout(16384)),
    ("1 T", Layout(2048, tensor=8)),
)

GROUPS = 2
"""Param groups: with and without decay, as `regkernels.param_groups` makes them."""

_NORM = 8 * 5
"""Bytes of the message for the norm: the sum of squares, whether to skip the step, and three numbers by which ranks notice that
their hyper-parameters differ."""


class Messages(NamedTuple):
    """Counts the optimizer's messages in each step after the first."""

    plain: Traffic
    norm: Traffic  # max_grad_norm or skip_nonfinite
    stats: Traffic


def messages(layout: Layout, groups: int = GROUPS) -> Messages:
    """Lists the messages: sums go over the ranks that hold different parts, not over replicas, each as one all-reduce of a few numbers.

    Where FSDP and tensor parallelism share a mesh of all ranks, over all of them.
    """
    ranks = layout.shards * layout.tensor
    of_stats = 8 * (len(SUMS) * groups + MARKS)
    return Messages(Traffic(0, 0), sharding.all_reduce(_NORM, ranks), sharding.all_reduce(of_stats, ranks))


def bytes_held(form: Format) -> int:
    """Counts bytes per weight: itself, its gradient and its states."""
    return 2 * form.dtype.itemsize + form.bytes_of_states


def bytes_moved(form: Format, *, clipped: bool) -> int:
    """Counts bytes per weight that a step reads and writes; to clip, gradients are read once more."""
    task = Task(form.optimizer.lower(), max_grad_norm=1.0 if clipped else None)
    return building.bytes_of_step(task, 1, form.dtype, form.bytes_of_states)


@dataclass(frozen=True)
class Rate:
    """Holds GB/s of a step, and where they come from."""

    source: str
    _given: float | None = None
    _measured: tuple[tuple[str, float], ...] = ()

    def of(self, form: Format) -> float | None:
        """Looks up a rate; None: not measured."""
        return self._given if self._given is not None else dict(self._measured).get(str(form))

    @classmethod
    def given(cls, gigabytes_per_second: float) -> Rate:
        return cls(f"{gigabytes_per_second:g} GB/s, as given; not measured here", gigabytes_per_second)

    @classmethod
    def measured(cls, path: Path = RECORD) -> Rate:
        """Takes the rates of the suite ``low_precision``."""
        record = Record.load(path)
        rows = [row for row in record.rows if row.suite == "low_precision" and row.peer == building.OURS]
        rates = tuple((row.case.rpartition(": ")[0], row.gigabytes_per_second) for row in rows)
        source = f"its measured rate on one device: {machine_and_threads(record)}, commit {record.commit}"
        return cls(source, None, rates)


class Grid(NamedTuple):
    """Holds a table, for the terminal or for a page."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int  # columns of text


def grids(rate: Rate, cases: Iterable[tuple[str, Layout]] = CASES) -> list[Grid]:
    chosen = [(MODELS[name], layout) for name, layout in cases]
    return [_formats(rate), _ranks(chosen), _times(chosen, rate), _traffic(chosen)]


def _formats(rate: Rate) -> Grid:
    headings = ("bytes per weight", "held", "moved", "moved, clipping", "GB/s")
    rows = []
    for label, form in FORMATS.items():
        found = rate.of(form)
        moved = [str(bytes_moved(form, clipped=clipped)) for clipped in (False, True)]
        rows.append((label, str(bytes_held(form)), *moved, "" if found is None else figures(found)))
    return Grid("A weight, its gradient and its states", headings, rows, 1)


def _of_case(model: Model, layout: Layout) -> tuple[str, str, str]:
    return model.name, str(layout), f"{layout.ranks:,}"


def _ranks(cases: Iterable[tuple[Model, Layout]]) -> Grid:
    headings = ("weights", "layout", "ranks", "10^6 weights", "over the mean", *SHOWN)
    rows = []
    for model, layout in cases:
        own = layout.fullest(model)
        mean = model.elements / (layout.shards * layout.tensor)
        sizes = [figures(own * bytes_held(form) / 1e9) for form in map(FORMATS.__getitem__, SHOWN)]
        rows.append((*_of_case(model, layout), figures(own / 1e6), f"{100 * (own / mean - 1):.1f} %", *sizes))
    return Grid("What the fullest rank holds: weights, gradients and states in GB", headings, rows, 2)


def _times(cases: Iterable[tuple[Model, Layout]], rate: Rate) -> Grid:
    headings = ("weights", "layout", "ranks", *SHOWN)
    rows = []
    for model, layout in cases:
        own, times = layout.fullest(model), []
        for form in map(FORMATS.__getitem__, SHOWN):
            found = rate.of(form)
            times.append("" if found is None else figures(own * bytes_moved(form, clipped=False) / found / 1e6))
        rows.append((*_of_case(model, layout), *times))
    return Grid(f"A step on that rank in ms, by {rate.source}", headings, rows, 2)


def _traffic(cases: Iterable[tuple[Model, Layout]]) -> Grid:
    headings = ("weights", "layout", "ranks", "step", "clipping", "stats", "FSDP itself", "GB")
    rows = []
    for model, layout in cases:
        engine = sharding.fsdp(model, layout, HALF.itemsize)
        own = [_in_words(traffic) for traffic in messages(layout)]
        rows.append((*_of_case(model, layout), *own, f"{engine.messages:,} messages", figures(engine.bytes / 1e9)))
    return Grid(
        "What a rank receives in a step: optimizer, and FSDP (bfloat16 weights, float32 sums)", headings, rows, 2
    )


def _in_words(traffic: Traffic) -> str:
    return f"{traffic.messages}, {traffic.bytes:.0f} B" if traffic.messages else "nothing"


def run(console: Console, bandwidth: float | None, *, markdown: bool) -> int:
    """Returns the exit status. ``bandwidth``: in GB/s; None: what the committed record has measured."""
    rate = Rate.measured() if bandwidth is None else Rate.given(bandwidth)
    if markdown:
        print(as_markdown(rate))
    else:
        _show(console, rate)
    return 0


def _show(console: Console, rate: Rate) -> None:
    for grid in grids(rate):
        table = Table(title=grid.title, title_justify="left", title_style="bold")
        for number, heading in enumerate(grid.headings):
            table.add_column(heading, justify="left" if number < grid.left else "right", no_wrap=number < grid.left)
        for row in grid.rows:
            table.add_row(*row)
        console.print(table)


def as_markdown(rate: Rate) -> str:
    parts = []
    for grid in grids(rate):
        rule = ["---" if number < grid.left else "--:" for number in range(len(grid.headings))]
        lines = [" | ".join(cells) for cells in (grid.headings, rule, *grid.rows)]
        parts.append("\n".join([f"*{grid.title}*", "", *(f"| {line} |" for line in lines)]))
    return "\n\n".join(parts)
