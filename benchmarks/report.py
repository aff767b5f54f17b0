"""The speed tables of README.md, written from committed records so that no number is typed by hand."""

from __future__ import annotations

from pathlib import Path

from benchmarks.record import RESULTS, Record

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
GPU_BEGIN, GPU_END = "<!-- GPU benchmarks: begin -->", "<!-- GPU benchmarks: end -->"


def last_record(device: str) -> Record | None:
    """The last record of a kind of device in alphabetical order of file names; there is one per machine and threads."""
    records = [record for record in map(Record.load, sorted(RESULTS.glob("*.json"))) if record.device == device]
    return records[-1] if records else None


def newest_record() -> Record:
    """Of the CPU."""
    record = last_record("cpu")
    if record is None:
        raise SystemExit("no record under benchmarks/results/: run `python -m benchmarks --save` first")
    return record


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


def gpu_table(record: Record) -> str:
    limits, versions = record.limits_gb_per_s, record.versions
    commit = f", commit {record.commit}" if record.commit else ""
    lines = [
        f"{record.machine}, torch {versions['torch']}, Triton {versions['triton']}{commit}. The device streams "
        f"{limits['update']:.0f} GB/s when it updates memory in place, {limits['copy']:.0f} GB/s when it copies and "
        f"{limits['read']:.0f} GB/s when it reads.",
        "",
        "| question | case | contender | ms | 20 % to 80 % | GB/s | % of limit | speed-up |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in record.rows:
        rate = f"{row.gigabytes_per_second:.0f} | {row.percent_of_limit:.0f}" if row.bytes_moved else " | "
        lines.append(
            f"| {row.question} | {row.case} | {row.contender} | {row.warm_ms:.3f} | {row.low_ms:.3f} to {row.high_ms:.3f} "
            f"| {rate} | {row.speedup:.2f} |"
        )
    return "\n".join(lines)


def between(text: str, begin: str, end: str, table: str) -> str:
    """``text`` with the part between two marks replaced."""
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{README.name} has no {begin} ... {end}")
    return f"{before}{begin}\n{table}\n{end}{after}"


def with_tables(text: str, cpu: Record, gpu: Record | None) -> str:
    """``text`` with the tables of these records. The GPU's comes after the CPU's, where it has no marks yet."""
    text = between(text, BEGIN, END, table(cpu))
    if gpu is None:
        return text
    if GPU_BEGIN not in text:
        text = text.replace(END, f"{END}\n\n{GPU_BEGIN}\n{GPU_END}")
    return between(text, GPU_BEGIN, GPU_END, gpu_table(gpu))


def update_readme() -> None:
    README.write_text(with_tables(README.read_text(), newest_record(), last_record("gpu")))
