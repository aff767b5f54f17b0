"""``python -m benchmarks``: runs all questions, prints a table, keeps a record under benchmarks/results/."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import optimizer_step, penalty, report
from benchmarks.record import Record
from benchmarks.timing import Case, machine_limits, measure

# question: (cases, rounds, runs per turn)
QUESTIONS: dict[str, tuple[Callable[[], Iterator[Case]], int, int]] = {
    "step": (optimizer_step.large, 12, 3),
    "small": (optimizer_step.many_small, 30, 8),
    "penalty": (penalty.cases, 5, 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--question", choices=QUESTIONS, action="append", help="only this one (may be repeated)")
    parser.add_argument("--threads", type=int, help="threads for torch and regkernels")
    parser.add_argument("--save", action="store_true", help="keep the record under benchmarks/results/")
    parser.add_argument("--readme", action="store_true", help="only write the newest record's table into README.md")
    arguments = parser.parse_args()
    if arguments.readme:
        report.update_readme()
        return
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    # A pipe has no width of its own, and the table needs some.
    console = Console(width=max(130, Console().width))
    record = Record(limits_gb_per_s=machine_limits())
    console.print(
        f"{record.machine}, {record.threads} threads, {record.instruction_set}; "
        f"limits in GB/s: {record.limits_gb_per_s}"
    )
    for question in arguments.question or QUESTIONS:
        cases, rounds, burst = QUESTIONS[question]
        for case in cases():
            with Progress(console=console, transient=True) as progress:
                task = progress.add_task(f"{case.question}: {case.name}", total=rounds)
                rows = measure(
                    case,
                    record.limits_gb_per_s,
                    rounds=rounds,
                    burst=burst,
                    tick=lambda progress=progress, task=task: progress.advance(task),
                )
            record.rows += rows
            console.print(_table(rows))
    if arguments.save:
        console.print(f"record: {record.save()}")


def _table(rows: list) -> Table:
    first = rows[0]
    table = Table(title=f"{first.question}: {first.case}", caption=f"ratios: {first.baseline} / contender")
    for name in ("contender", "ms", "20 %", "80 %", "GB/s", "% of limit", "ratio", "ms cold", "ratio cold"):
        table.add_column(name, justify="left" if name == "contender" else "right")
    for row in rows:
        table.add_row(
            row.contender,
            f"{row.warm_ms:.3f}",
            f"{row.low_ms:.3f}",
            f"{row.high_ms:.3f}",
            f"{row.gigabytes_per_second:.1f}",
            f"{row.percent_of_limit:.0f}",
            f"{row.speedup:.2f}",
            f"{row.cold_ms:.3f}",
            f"{row.speedup_cold:.2f}",
        )
    return table


if __name__ == "__main__":
    main()
