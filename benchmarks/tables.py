"""Prints tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.compare import Change
from benchmarks.headlines import is_wrong
from benchmarks.names import is_ours
from benchmarks.printing import Table, Text
from benchmarks.record import LeftOut, Record, Row


def case_table(rows: Sequence[Row]) -> Table:
    first = rows[0]
    about_memory = any(row.bytes_moved for row in rows)
    headings = ["peer", "ms", "20 % to 80 %"]
    headings += ["GB/s", "% of stream"] if about_memory else []
    headings += ["ratio", "20 % to 80 %", "ms cold"]
    with_peaks = any(row.peak_bytes is not None for row in rows)
    headings += ["peak MiB"] if with_peaks else []
    table = _table(
        *headings, title=f"{first.suite}: {first.case}", caption=f"ratio: time of {first.baseline} / time of the peer"
    )
    for row in rows:
        cells = [
            f"{row.peer} (wrong)" if is_wrong(row) else row.peer,
            figures(row.ms),
            f"{figures(row.low_ms)} to {figures(row.high_ms)}",
        ]
        if about_memory:
            cells += (
                [f"{figures(row.gigabytes_per_second)}", f"{row.percent_of_stream:.0f}"]
                if row.bytes_moved
                else ["", ""]
            )
        cells += [figures(row.ratio), f"{figures(row.ratio_low)} to {figures(row.ratio_high)}", figures(row.cold_ms)]
        if with_peaks:
            cells.append("" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:,.1f}")
        table.add_row(*map(Text, cells), style="bold" if is_ours(row.peer) else "")
    return table


def machine_and_threads(record: Record) -> str:
    if record.device != "cpu":
        return record.machine
    return f"{record.machine}, {record.threads} thread{'s' if record.threads > 1 else ''}"


def machine(record: Record) -> str:
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in record.streams_gb_per_s.items())
    return f"{machine_and_threads(record)}, {record.instruction_set}; plain streams in GB/s: {rates}"


def notes(rows: Iterable[Row]) -> Iterable[str]:
    return (f"{row.peer}: {row.note}" for row in rows if row.note)


def left_out(items: Iterable[LeftOut]) -> Iterable[str]:
    for item in items:
        if item.peer:
            yield f"left out: {item.peer}: {item.reason}"
        else:
            yield f"skipped: {item.suite}{': ' + item.case if item.case else ''}: {item.reason}"


def listing(kind: str, rows: Mapping[str, str]) -> Table:
    table = _table(kind, "", justify="left")
    for name, text in rows.items():
        table.add_row(Text(name), Text(text))
    return table


def changes_table(changes: Iterable[Change]) -> Table:
    table = _table("suite", "case", "peer", "ms A", "ms B", "B is", "at least", left=3)
    for change in changes:
        table.add_row(
            *map(Text, (change.suite, change.case, change.peer, figures(change.before_ms), figures(change.after_ms))),
            Text(in_words(change.factor)),
            Text(in_words(change.least)),
            style="green" if change.factor > 1 else "bold red" if change.fails else "red",
        )
    return table


def in_words(factor: float) -> str:
    """Says how many times as fast it is, or as slow."""
    return f"{factor:.2f} x faster" if factor >= 1 else f"{1 / factor:.2f} x slower"


def figures(number: float) -> str:
    """Writes three digits, as more are noise; small numbers keep theirs."""
    if number >= 100 or number == 0:
        return f"{number:.0f}"
    digits = 1 if number >= 10 else 2 if number >= 1 else 3 if number >= 0.1 else 4
    return f"{number:.{digits}f}"


def _table(*headings: str, left: int = 1, justify: str = "right", **options: str) -> Table:
    table = Table(title_justify="left", title_style="bold", caption_justify="left", **options)  # type: ignore[arg-type]
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < left else justify)  # type: ignore[arg-type]
    return table
