"""The speed table of README.md, written from a committed record so that no number is typed by hand."""

from __future__ import annotations

from pathlib import Path

from benchmarks.record import RESULTS, Record

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"


def newest_record() -> Record:
    """The last record in alphabetical order of file names; there is one per machine and number of threads."""
    paths = sorted(RESULTS.glob("*.json"))
    if not paths:
        raise SystemExit("no record under benchmarks/results/: run `python -m benchmarks --save` first")
    return Record.load(paths[-1])


def table(record: Record) -> str:
    lines = [
        f"{record.machine}, {record.threads} threads, {record.instruction_set}, torch {record.versions['torch']}, "
        f"commit {record.commit}. The machine streams {record.limits_gb_per_s['update']:.0f} GB/s when it updates "
        f"memory in place and {record.limits_gb_per_s['read']:.0f} GB/s when it reads.",
        "",
        "| question | case | contender | ms | GB/s | % of limit | speed-up | speed-up, cold caches |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in record.rows:
        lines.append(
            f"| {row.question} | {row.case} | {row.contender} | {row.warm_ms:.2f} | {row.gigabytes_per_second:.1f} "
            f"| {row.percent_of_limit:.0f} | {row.speedup:.2f} | {row.speedup_cold:.2f} |"
        )
    return "\n".join(lines)


def with_table(text: str, record: Record) -> str:
    """``text`` with the part between the marks replaced."""
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{README.name} has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{table(record)}\n{END}{after}"


def update_readme() -> None:
    README.write_text(with_table(README.read_text(), newest_record()))
