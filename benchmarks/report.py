"""Writes the speed tables of README.md and docs/benchmarks.md from committed records, so that no number is typed by hand."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks import pictures
from benchmarks.headlines import SHORT, TABLE, fastest, headlines, is_wrong
from benchmarks.names import is_ours
from benchmarks.record import RESULTS, Record, Row
from benchmarks.tables import figures, machine_and_threads

ROOT = Path(__file__).parents[1]
README, PAGE = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
# By name, so that a record of another machine beside them changes nothing.
CPU, GPU = RESULTS / "amd-epyc" / "cpu-2-threads.json", RESULTS / "nvidia-h200" / "gpu.json"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
GPU_BEGIN, GPU_END = "<!-- GPU benchmarks: begin -->", "<!-- GPU benchmarks: end -->"
WORTH_A_LINE = 1.1
"""A variant of ours is listed where it is so many times as fast as regkernels without it."""

CAPTIONS = {
    "stream": "How fast everyone moves memory, beside a plain stream over the same bytes",
    "elements": "Time of a step against the number of elements",
    "tensors": "Time of a step against the number of tensors",
    "threads": "Time of a step against the number of threads",
}


class NoPart(Exception):
    """Says what is missing."""


def update() -> int:
    """Rewrites both texts, and returns the exit status."""
    try:
        texts = {path: rewritten(path.read_text(), part) for path, part in PARTS.items()}
    except NoPart as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path, text in texts.items():
        path.write_text(text)
    return 0


def rewritten(text: str, part: Callable[[Path], str]) -> str:
    """Returns a text with its part about each record. The GPU's comes after the CPU's, where it has no marks yet."""
    if not CPU.exists():
        raise NoPart(f"{_relative(CPU)} is missing; on that machine, `python -m regkernels bench` writes it")
    text = _between(text, BEGIN, END, part(CPU))
    if not GPU.exists():
        return text
    if GPU_BEGIN not in text:
        text = text.replace(END, f"{END}\n\n{GPU_BEGIN}\n{GPU_END}")
    return _between(text, GPU_BEGIN, GPU_END, part(GPU))


def short_part(path: Path) -> str:
    """Returns what README.md says of a record: a line for each question."""
    record = Record.load(path)
    lines = ["| | regkernels | others | |", "|---|--:|---|--:|"]
    for rows in headlines(record, SHORT):
        ours = next((row for row in rows if row.peer == "regkernels"), None)
        if ours is not None:
            over = _baseline(ours, rows)
            times = f"{figures(ours.ms)} ms | {over.peer}: {figures(over.ms)} ms | {figures(ours.ratio)}×"
            lines.append(f"| {ours.suite.replace('_', ' ')}, {ours.case} | {times} |")
    return "\n\n".join([f"{machine_and_threads(record)}, {record.instruction_set}:", "\n".join(lines)])


def whole_part(path: Path) -> str:
    """Returns what the benchmarks' page says of a record: all variants and everyone else, and the pictures."""
    record = Record.load(path)
    cases = headlines(record, TABLE)
    paragraphs = [_introduction(record), _table(cases), *_remarks(record, cases)]
    paragraphs += [f"![{CAPTIONS[what]}](../{_relative(picture)})" for what, picture in pictures.beside(path)]
    return "\n\n".join(paragraphs)


PARTS = {README: short_part, PAGE: whole_part}


def _introduction(record: Record) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    commit = f", commit {record.commit}" if record.commit else ""
    streams = {"update": "updates memory in place", "copy": "copies", "read": "reads"}
    of = record.streams_gb_per_s
    rates = [f"{of[name]:.0f} GB/s when it {does}" for name, does in streams.items() if name in of]
    return (
        f"{machine_and_threads(record)}, {record.instruction_set}; {versions}{commit}. "
        f"The machine streams {', '.join(rates[:-1])} and {rates[-1]}."
    )


def _table(cases: Iterable[Sequence[Row]]) -> str:
    lines = [
        "| question | case | ours | ms | % of stream | speed-up (20 to 80 %) | over, ms | fastest other, ms |",
        "|---|---|---|--:|--:|--:|---|---|",
    ]
    for rows in cases:
        lines += [_line(row, rows) for row in _worth_a_line(rows)]
    return "\n".join(lines)


def _worth_a_line(rows: Sequence[Row]) -> list[Row]:
    plain = next((row for row in rows if row.peer == "regkernels"), None)
    ours = [row for row in rows if is_ours(row.peer)]
    if plain is None:
        return ours
    return [plain, *(row for row in ours if row is not plain and WORTH_A_LINE * row.ms < plain.ms)]


def _line(row: Row, rows: Sequence[Row]) -> str:
    baseline = _baseline(row, rows)
    other = fastest([other for other in rows if not is_ours(other.peer)])
    cells = [
        row.suite.replace("_", " "),
        row.case,
        row.peer,
        figures(row.ms),
        f"{row.percent_of_stream:.0f}" if row.bytes_moved else "",
        f"{figures(row.ratio)} ({figures(row.ratio_low)} to {figures(row.ratio_high)})",
        f"{baseline.peer}, {figures(baseline.ms)}{', wrong' if is_wrong(baseline) else ''}",
        "" if other is None else "the same" if other is baseline else f"{other.peer}, {figures(other.ms)}",
    ]
    return f"| {' | '.join(cells)} |"


def _baseline(row: Row, rows: Sequence[Row]) -> Row:
    return next(other for other in rows if other.peer == row.baseline)


def _remarks(record: Record, cases: Iterable[Sequence[Row]]) -> list[str]:
    """Says who is not in the table, and why."""
    wrong = dict.fromkeys(
        f"{row.peer} ({row.suite.replace('_', ' ')})" for rows in cases for row in rows if is_wrong(row)
    )
    absent = [item.peer for item in record.left_out if item.peer and not item.suite]
    remarks = []
    if wrong:
        remarks.append(f"Never the fastest here, as they compute something else than they should: {'; '.join(wrong)}.")
    if absent:
        remarks.append(f"Not installed on this machine: {'; '.join(absent)}.")
    return remarks


def _between(text: str, begin: str, end: str, part: str) -> str:
    """Replaces the part of ``text`` between two marks."""
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise NoPart(f"a text has no {begin} ... {end}")
    return f"{before}{begin}\n{part}\n{end}{after}"


def _relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()
