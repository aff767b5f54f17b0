"""Draws pictures of a record: how fast everyone moves memory, beside a plain stream,, and how time grows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.headlines import BARS, headlines, is_wrong
from benchmarks.names import all_peers, is_ours
from benchmarks.record import Record, Row
from benchmarks.shapes import short
from benchmarks.tables import figures, machine_and_threads

WIDTH, DPI = 9.0, 110  # 990 pixels; README.md shows them about 900 wide
OURS, DARKER = "#009E73", "#00563f"
# Okabe and Ito's other colours, which people with any kind of colour vision can tell apart, and darker ones of them.
OTHERS = (
    "#0072B2",
    "#E69F00",
    "#CC79A7",
    "#D55E00",
    "#56B4E9",
    "#7f7f7f",
    "#882255",
    "#999933",
    "#332288",
    "#AA4499",
    "#661100",
    "#DDCC77",
)
MARKERS = "sDv^<>pX*hdP"
STREAM = "#444444"
# By suite: a title, and the label of the axis.
AXES = {
    "elements": ("one tensor, larger and larger", "elements"),
    "tensors": ("the same number of elements in more and more tensors", "tensors"),
    "threads": ("more and more threads", "threads"),
}


def draw(record: Record, path: Path) -> list[Path]:
    """Writes pictures beside the record that is or will be at ``path``. Needs no display."""
    written = []
    cases = [rows for rows in headlines(record, BARS) if any(row.bytes_moved for row in rows)]
    if cases:
        written.append(_save(_bars(record, cases), path, "stream"))
    for suite, (title, label) in AXES.items():
        rows = [row for row in record.rows if row.suite == suite and row.x]
        if len({row.x for row in rows}) > 2:
            written.append(_save(_lines(record, rows, title, label), path, suite))
    return written


def look(peer: str) -> dict[str, Any]:
    """Gives a peer the same look in each picture of each record, as their order does not depend on who is there.

    Ours is wide and below the others, so that a line that lies on it can be seen as well.
    """
    if peer == "regkernels":
        return {"color": OURS, "marker": "o", "linewidth": 5, "zorder": 2.5}
    if is_ours(peer):
        return {"color": DARKER, "marker": "o", "linestyle": (0, (4, 1.5)), "linewidth": 1.8, "zorder": 4}
    known = [name for name in all_peers() if not is_ours(name)]
    number = known.index(peer) if peer in known else len(known) + sum(map(ord, peer))
    shape = {"marker": MARKERS[number % len(MARKERS)], "linewidth": 1.6, "zorder": 3}
    return {"color": OTHERS[number % len(OTHERS)]} | shape


def _bars(record: Record, cases: Sequence[Sequence[Row]]) -> Figure:
    heights = [len(rows) for rows in cases]
    figure = _figure(0.9 + sum(0.27 * height + 0.62 for height in heights))
    panels = figure.subplots(
        len(cases), 1, sharex=True, height_ratios=[height + 0.8 for height in heights], squeeze=False
    )
    figure.suptitle(_title(record), fontsize=11, fontweight="bold")
    most = max(110.0, *(row.percent_of_stream for rows in cases for row in rows))
    for axes, rows in zip(panels[:, 0], cases, strict=True):
        for place, row in enumerate(rows):
            weight, alpha = "bold" if is_ours(row.peer) else "normal", 0.35 if is_wrong(row) else 1.0
            axes.barh(place, row.percent_of_stream, 0.72, color=look(row.peer)["color"], alpha=alpha, zorder=2)
            for column, text in (
                (1.09, f"{row.percent_of_stream:.0f} %"),
                (1.22, f"{figures(row.ms)} ms"),
                (1.235, "wrong" if is_wrong(row) else ""),
            ):
                axes.text(
                    column,
                    place,
                    text,
                    transform=axes.get_yaxis_transform(),
                    ha="left" if column > 1.22 else "right",
                    va="center_baseline",
                    fontsize=9,
                    weight=weight,
                )
        axes.axvline(100, color=STREAM, linestyle="--", linewidth=1.4, zorder=3)
        axes.set_yticks(range(len(rows)), [row.peer for row in rows], fontsize=9)
        for label, row in zip(axes.get_yticklabels(), rows, strict=True):
            label.set_fontweight("bold" if is_ours(row.peer) else "normal")
        axes.set_ylim(len(rows) - 0.45, -0.55)
        axes.set_xlim(0, 1.02 * most)
        axes.set_title(_case_title(rows[0]), fontsize=10, loc="left")
        axes.tick_params(axis="y", length=0)
        _tidy(axes, "x")
    panels[-1, 0].set_xlabel("bytes that have to be moved, in % of what a plain stream moves in that time")
    return figure


def _lines(record: Record, rows: Sequence[Row], title: str, label: str) -> Figure:
    figure = _figure(5.0)
    axes = figure.subplots()
    figure.suptitle(_title(record), fontsize=11, fontweight="bold")
    for peer in dict.fromkeys(row.peer for row in rows):
        own = sorted((row for row in rows if row.peer == peer), key=lambda row: row.x or 0)
        points = [row.x for row in own]
        axes.plot(points, [row.ms for row in own], label=peer, markersize=5, **look(peer))
        axes.fill_between(
            points,
            [row.low_ms for row in own],
            [row.high_ms for row in own],
            color=look(peer)["color"],
            alpha=0.15,
            linewidth=0,
        )
    streams = sorted({(row.x, _stream_ms(row, record)) for row in rows if row.bytes_moved and row.peer == "regkernels"})
    if len(streams) > 1:
        axes.plot(
            *zip(*streams, strict=True),
            "--",
            color=STREAM,
            linewidth=1.4,
            label="a plain stream over the same bytes",
            zorder=1,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    lowest, highest = min(row.low_ms for row in rows), max(row.high_ms for row in rows)
    # The stream of tiny cases is far below what anything takes, and would squeeze the rest.
    axes.set_ylim(lowest / 2, highest * 1.6)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x).replace(" ", "\u2009")))
    axes.yaxis.set_major_locator(LogLocator(numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(_duration))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(label)
    axes.set_ylabel("time of a step")
    rule = rows[0].case.partition(",")[0].partition(":")[0]
    axes.set_title(f"{rule}: {title}", fontsize=10, loc="left")
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    _tidy(axes, "both")
    return figure


def _stream_ms(row: Row, record: Record) -> float:
    return row.bytes_moved / record.streams_gb_per_s[row.stream] / 1e6


def _duration(milliseconds: float, _: object) -> str:
    for size, unit in ((1e3, "s"), (1.0, "ms"), (1e-3, "µs")):
        if milliseconds >= 0.999 * size:
            return f"{milliseconds / size:g} {unit}"
    return f"{1e6 * milliseconds:g} ns"


def _case_title(row: Row) -> str:
    return f"{row.suite.replace('_', ' ')}: {row.case}"


def _title(record: Record) -> str:
    rates = record.streams_gb_per_s
    streams = f"streams {rates['update']:.0f} GB/s in place, reads {rates['read']:.0f} GB/s"
    return f"{machine_and_threads(record)}: {streams}"


def _figure(height: float) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.06)
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _tidy(axes: Any, grid: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color="#e6e6e6", linewidth=0.8)


def _save(figure: Figure, record: Path, what: str) -> Path:
    path = record.with_name(f"{record.stem}-{what}.png")
    # matplotlib's own version in the file would make a new picture of the same.
    figure.savefig(path, format="png", metadata={"Software": None}, pil_kwargs={"optimize": True})
    return path


def beside(record: Path) -> list[tuple[str, Path]]:
    """Returns the pictures of a record with what is on them, in the order in which they are to be read."""
    pictures = [(what, record.with_name(f"{record.stem}-{what}.png")) for what in ("stream", *AXES)]
    return [(what, path) for what, path in pictures if path.exists()]
