"""Does what ``python -m regkernels bench`` asks for. Its options are in regkernels/__main__.py."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

import regkernels
from benchmarks import compare, names, record, running, shapes, suites, tables
from benchmarks.case import Case, Scope
from benchmarks.printing import Console
from benchmarks.progress import Bar, Budget
from benchmarks.record import LeftOut, Row

SCRATCH = Path(__file__).with_name("scratch")


def run(options: argparse.Namespace) -> int:
    """Returns the exit status; see `regkernels.__main__.main`."""
    # A pipe has no width of its own, and the tables need some.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    if options.force and not options.compare:
        return _error("--force belongs to --compare", 2)
    if (options.bandwidth or options.markdown) and not options.projection:
        return _error(f"--{'bandwidth' if options.bandwidth else 'markdown'} belongs to --projection", 2)
    if options.list:
        return _list(console)
    if options.compare:
        return _compare(*options.compare, options.force, console)
    if options.readme:
        from benchmarks import report

        return report.update()
    if options.projection:
        from benchmarks import projection

        return projection.run(console, options.bandwidth, markdown=options.markdown)
    if options.threads:
        torch.set_num_threads(options.threads)  # first, as a suite may go up to that number
    try:
        tasks = _chosen(options)
    except names.UnknownName as error:
        return _error(f"{error}\n`python -m regkernels bench --list` says more about them", 2)
    if not tasks:
        return _error("there is no GPU here: torch.cuda.is_available() is false", 1)
    part = options.quick or options.suite or options.shapes or options.peers
    folder = options.output or (SCRATCH if part else record.RESULTS)
    folder.mkdir(parents=True, exist_ok=True)  # refused here, not after the first case
    return _run(tasks, folder, quick=options.quick, pictures=not options.no_pictures, console=console)


@dataclass
class Task:
    """Says what to measure on one device."""

    device: str
    cases: list[Case]
    left_out: list[LeftOut]


def _chosen(options: argparse.Namespace) -> list[Task]:
    questions = names.chosen("suite", options.suite, suites.SUITES) or tuple(suites.SUITES)
    models = names.chosen("shapes", options.shapes, shapes.LISTS)
    who = names.chosen("peer", options.peers, names.all_peers())
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [
        Task(device, *running.collect(questions, Scope(device, options.quick, models, who)))
        for device in devices
        if options.device in (None, device)
    ]


def _run(tasks: list[Task], folder: Path, *, quick: bool, pictures: bool, console: Console) -> int:
    torch.manual_seed(0)
    if regkernels.info()["backend"] == "reference":
        _say(
            console,
            "regkernels runs on its slow reference here: `python -m regkernels info` says why.",
            style="bold red",
        )
    versions, absent = names.find_peers()
    for name, why in absent.items():
        _say(console, f"not here: {name}: {why}")
    for task in tasks:
        running.without(absent, task.cases)
    budget = Budget(sum(len(task.cases) for task in tasks), quick)
    _say(
        console,
        f"Cases: {budget.cases}, at least {_duration(budget.total)}. Ctrl-C ends it and keeps what has been measured.",
    )
    measured = False
    with Bar(console, budget) as bar:
        for task in tasks:
            measured |= _measure(task, versions, absent, folder, bar, pictures)
    return 0 if measured else _error("nothing could be measured", 1)


def _measure(
    task: Task, versions: dict[str, str], absent: dict[str, str], folder: Path, bar: Bar, pictures: bool
) -> bool:
    kept = record.new(task.device)
    # Most peers come from torch, whose version is there already.
    kept.versions |= {name: version for name, version in versions.items() if version not in kept.versions.values()}
    path = folder / kept.path.relative_to(record.RESULTS)
    # The last whole record stays until this one is whole.
    unfinished = path.with_suffix(".unfinished.json")
    kept.streams_gb_per_s = running.machine_streams(task.device)
    _say(bar.console, f"\n{tables.machine(kept)}", style="bold")
    said: set[str] = set()
    _report([], task.left_out, bar.console, said)
    kept.left_out += task.left_out
    kept.left_out += [LeftOut("", "", name, why) for name, why in absent.items()]
    try:
        for case in task.cases:
            before = len(kept.left_out)
            rows = running.run_case(case, kept, bar.next(case), bar.tick)
            kept.save(unfinished)
            _report(rows, kept.left_out[before:], bar.console, said)
    except KeyboardInterrupt:
        done = f"what was measured is in {unfinished}" if unfinished.exists() else "nothing was measured"
        _say(bar.console, f"Interrupted; {done}")
        raise
    if not kept.rows:
        unfinished.unlink(missing_ok=True)
        return False
    unfinished.replace(path)
    _say(bar.console, f"record: {path}")
    if pictures:
        from benchmarks.pictures import draw

        for picture in draw(kept, path):
            _say(bar.console, f"picture: {picture}")
    return True


def _report(rows: list[Row], left_out: Iterable[LeftOut], console: Console, said: set[str]) -> None:
    """Prints a case. ``said``: notes of earlier cases. Most are true of a peer in all of them."""
    if rows:
        console.print(tables.case_table(rows))
    for note in tables.notes(rows):
        if note not in said:
            _say(console, note, style="yellow")
            said.add(note)
    for line in tables.left_out(left_out):
        _say(console, line, style="yellow")


def _list(console: Console) -> int:
    _say(
        console, "Peers that are here, and versions of what they come from. The first that takes part is the baseline."
    )
    versions, absent = names.find_peers()
    console.print(tables.listing("peer", versions | {name: f"not here: {why}" for name, why in absent.items()}))
    console.print(tables.listing("suite", {name: names.question(name) for name in suites.SUITES}))
    console.print(tables.listing("shapes", {name: names.shapes_in_words(name) for name in shapes.LISTS}))
    return 0


def _compare(first: Path, second: Path, force: bool, console: Console) -> int:
    try:
        found = compare.compare(compare.load(first), compare.load(second), force=force)
    except compare.CannotCompare as error:
        return _error(str(error), 2)
    for warning in found.warnings:
        _say(console, f"warning: {warning}", style="yellow")
    if found.changes:
        console.print(tables.changes_table(found.changes))
        _say(console, f"A: {first}\nB: {second}")
    _say(
        console,
        f"{len(found.changes)} changed beyond noise, {found.steady} did not, {found.only_in_one} are in one only",
    )
    if found.fails:
        _say(console, f"regkernels is slower by more than {100 * compare.TOLERATED - 100:.0f} %", style="bold red")
    return int(found.fails)


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} seconds"


def _say(console: Console, text: str, style: str = "") -> None:
    # Paths are not broken in the middle, so that they can be copied.
    console.print(text, style=style, markup=False, soft_wrap=True)


def _error(text: str, status: int) -> int:
    print(f"error: {text}", file=sys.stderr)
    return status
