"""Shows what digits_group_lasso.py finds, as a record, a table, sentences and a picture."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from digits_times import Time
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from rich.box import SIMPLE_HEAD
from rich.table import Table

import regkernels as rk

_NAMES = {"none": "no penalty", "group_l1": "group_l1", "l1": "l1"}
# Okabe and Ito's palette, which people with any kind of colour vision can tell apart.
_COLOURS = {"none": "#7f7f7f", "group_l1": "#009E73", "l1": "#E69F00"}


class Point(NamedTuple):
    """Describes one strength of one penalty; lists have an entry per seed. ``test``: accuracy of the network as it was trained;
    ``hidden``, ``parameters``, ``compacted_test``: of the network after compaction; ``alive``: rows that are not zero, after each epoch."""

    penalty: str
    strength: float
    validation: list[float]
    test: list[float]
    compacted_test: list[float]
    hidden: list[list[int]]
    parameters: list[int]
    alive: list[list[int]]

    @property
    def units(self) -> float:
        """Returns hidden units after compaction, a mean over the seeds."""
        return mean(map(sum, self.hidden))


class Findings(NamedTuple):
    """Holds ``chosen``: indices of ``points`` by penalty. ``example``: the sparsity report and the compaction of the chosen group_l1
    network of the first seed. ``difference``: of outputs before and after compaction, relative to the largest.
    ``refit``: accuracy on test images of the compacted group_l1 networks, trained on without the penalty. ``times``: of the first seed."""

    machine: dict[str, str]
    hidden: list[int]
    tolerance: float
    images: list[int]
    example: str
    points: list[Point]
    chosen: dict[str, int]
    difference: float
    same_predictions: bool
    refit_epochs: int
    refit: list[float]
    times: list[Time]


def mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def machine() -> dict[str, str]:
    """Says what times depend on."""
    try:
        cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        cpu = None
    return {
        "processor": cpu.group(1) if cpu else platform.machine(),
        "instructions": str(rk.info()["instruction_set"]),
        "torch": str(torch.__version__),
        "Python": platform.python_version(),
    }


def write(findings: Findings, path: Path) -> None:
    """Writes a JSON file that `read` understands."""
    content = findings._asdict() | {
        "points": [p._asdict() for p in findings.points],
        "times": [t._asdict() for t in findings.times],
    }
    path.write_text(json.dumps(content).replace("}, {", "},\n{") + "\n", encoding="utf-8")


def read(path: Path) -> Findings:
    content = json.loads(path.read_text(encoding="utf-8"))
    content["points"] = [Point(**p) for p in content["points"]]
    content["times"] = [Time(**t) for t in content["times"]]
    return Findings(**content)


_TITLES = ("network", "test, %", "hidden", "params", "1 image", "1000 images")
_FULL_TITLES = ("network", "test accuracy, %", "hidden units", "parameters", "forward, 1 image", "forward, 1000 images")


def rows(findings: Findings) -> list[tuple[str, ...]]:
    """Returns the cells of the table, without the titles."""
    (without,) = (p for p in findings.points if p.penalty == "none")
    found = [_row(findings, "no penalty", "none", without.test, without)]
    for penalty in ("l1", "group_l1"):
        p = findings.points[findings.chosen[penalty]]
        found.append(_row(findings, f"{penalty} = {p.strength:g}", penalty, p.test, without))
        found.append(_row(findings, "... compacted", f"{penalty}, compacted", p.compacted_test, p))
    found.append(("... and refitted", _percent(mean(findings.refit)), *found[-1][2:]))
    return found


def _row(findings: Findings, title: str, timed: str, accuracies: list[float], size: Point) -> tuple[str, ...]:
    layers = "+".join(f"{mean(layer):.0f}" for layer in zip(*size.hidden, strict=True))
    times = [f"{_duration(t.microseconds)}, {t.speedup:.1f} x" for t in findings.times if t.name == timed]
    return title, _percent(mean(accuracies)), layers, f"{mean(size.parameters):,.0f}", *times


def _duration(microseconds: float) -> str:
    return f"{microseconds:.0f} µs" if microseconds < 1000 else f"{microseconds / 1000:.2f} ms"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def as_table(findings: Findings) -> Table:
    """Makes a table for the terminal."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column, title in enumerate(_TITLES):
        table.add_column(title, justify="right" if column else "left", no_wrap=True)
    for row in rows(findings):
        table.add_row(*row)
    return table


def as_markdown(findings: Findings) -> str:
    """Makes a table for the documentation."""
    lines = [_FULL_TITLES, ("---", *["--:"] * (len(_FULL_TITLES) - 1)), *rows(findings)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def in_words(findings: Findings) -> str:
    """Says what the table does not."""
    train, validation, test = findings.images
    seeds = len(findings.refit)
    one, thousand = (f"{t.low:.1f} to {t.high:.1f}" for t in findings.times if t.name == "group_l1, compacted")
    machine = ", ".join(f"{name} {value}" for name, value in findings.machine.items())
    same = "the same for all images" if findings.same_predictions else "NOT the same for all images"
    return (
        f"{train} images to learn, {validation} to choose the strength, {test} to test; accuracies and sizes are means over "
        f"{seeds} seed{'s' if seeds > 1 else ''}. Compaction changes outputs by at most {findings.difference:.0e} of the largest; predictions are "
        f"{same}. Refitted: {findings.refit_epochs} epochs more, without the penalty. Times are the first seed's: processor time of one "
        f"thread ({machine}), medians of rounds in which all take turns, and how many times as fast that is as "
        f"the network without penalty; for the compacted group_l1 network, from the 20th to the 80th percentile, {one} times with 1 image "
        f"and {thousand} with 1000."
    )


def draw(findings: Findings, picture: Path) -> None:
    """Draws accuracy against hidden units on the left, what the trainings with group_l1 do to them on the right."""
    figure = Figure(figsize=(10, 4.2), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12)
    choice, course = figure.subplots(1, 2, width_ratios=(1.25, 1))
    _draw_choice(choice, findings)
    _draw_course(course, findings)
    for axes in (choice, course):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
    figure.savefig(picture)


def _draw_choice(axes: Any, findings: Findings) -> None:
    """Draws means over the seeds as lines, each seed as a small point."""
    halo = [withStroke(linewidth=3, foreground="white")]  # where lines cross the numbers
    for penalty, colour in _COLOURS.items():
        points = [p for p in findings.points if p.penalty == penalty]
        units, accuracies = [p.units for p in points], [100 * mean(p.test) for p in points]
        for p in points:
            axes.plot(
                [sum(h) for h in p.hidden], [100 * a for a in p.test], ".", color=colour, alpha=0.45, markersize=4
            )
        axes.plot(units, accuracies, "o-", color=colour, label=_NAMES[penalty])
        if penalty == "none":
            axes.axhline(accuracies[0], color=colour, linewidth=1, linestyle=":")
        if penalty in findings.chosen:
            p = findings.points[findings.chosen[penalty]]
            axes.plot(p.units, 100 * mean(p.test), "o", markersize=14, fillstyle="none", color=colour)
        left = penalty == "l1"
        for p, across, up in zip(points, units, accuracies, strict=True):
            if p.strength:
                axes.annotate(
                    f"{p.strength:g}",
                    (across, up),
                    (-7, -12) if left else (7, 6),
                    textcoords="offset points",
                    fontsize=8,
                    color=colour,
                    ha="right" if left else "left",
                    path_effects=halo,
                )
    axes.set_xscale("log")
    axes.invert_xaxis()
    ticks = [t for t in (1000, 500, 200, 100, 50, 20, 10, 5) if t <= 2 * sum(findings.hidden)]
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    axes.set_xlim(1.25 * sum(findings.hidden), 0.75 * min(sum(h) for p in findings.points for h in p.hidden))
    axes.set(
        title="Which strength? (circles: chosen)", xlabel="hidden units after compaction", ylabel="test accuracy (%)"
    )
    axes.legend(frameon=False, loc="lower left")


def _draw_course(axes: Any, findings: Findings) -> None:
    points = [p for p in findings.points if p.penalty == "group_l1"]
    for index, p in enumerate(points):
        alive = [mean(counts) for counts in zip(*p.alive, strict=True)]
        chosen = p is findings.points[findings.chosen["group_l1"]]
        axes.plot(
            range(1, len(alive) + 1),
            alive,
            color=_COLOURS["group_l1"],
            alpha=1 - 0.6 * index / max(1, len(points) - 1) if not chosen else 1,
            linewidth=2.6 if chosen else 1.3,
        )
        axes.annotate(
            f"{p.strength:g}",
            (len(alive), alive[-1]),
            (5, 0),
            textcoords="offset points",
            fontsize=8,
            color=_COLOURS["group_l1"],
            va="center",
            weight="bold" if chosen else "normal",
        )
    axes.set_ylim(0, 1.03 * sum(findings.hidden))
    axes.set_xlim(0, 1.13 * len(points[0].alive[0]))
    axes.set(
        title="group_l1: hidden units alive during training",
        xlabel="epoch",
        ylabel=f"rows not zero (of {sum(findings.hidden)})",
    )
