"""Says how long each case may take, and shows it by a progress bar."""

from __future__ import annotations

import time

from benchmarks.case import Case
from benchmarks.measure import Plan
from benchmarks.printing import BarColumn, Console, Progress, TextColumn, TimeRemainingColumn

FULL = Plan(seconds=6.0)
QUICK = 95.0
"""Seconds for all cases of a quick run; building them and importing torch fit into the rest of two minutes."""


class Budget:
    """Shares what is left of a quick run's time among the cases that are left."""

    def __init__(self, cases: int, quick: bool) -> None:
        self.cases, self.quick = cases, quick
        self.planned = min(1.5, QUICK / max(1, cases)) if quick else FULL.seconds
        self._left = cases
        self._end = time.perf_counter() + QUICK

    @property
    def total(self) -> float:
        return self.cases * self.planned

    def next(self) -> Plan | None:
        """Plans the next case; None where no time is left."""
        remaining, share = self._end - time.perf_counter(), max(1, self._left)
        self._left -= 1
        if not self.quick:
            return FULL
        if remaining <= 0:
            return None
        seconds = min(1.5, remaining / share)
        # One cold and one warm run per round; where time runs out, a single round is better than nothing for the rest.
        return Plan(seconds, least=3 if seconds > 0.75 * self.planned else 1, most=20, burst=2)


class Bar:
    """Goes over the whole run. In a pipe nothing of it is seen.

    It is drawn between the rounds only: a thread that draws would take a core from what is measured.
    """

    def __init__(self, console: Console, budget: Budget) -> None:
        self.console, self.budget = console, budget
        self._done = 0
        self._drawn = 0.0
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            auto_refresh=False,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=budget.total)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def next(self, case: Case) -> Plan | None:
        self._progress.update(
            self._task,
            completed=self._done * self.budget.planned,
            description=f"{case.suite}: {case.name}"[:60],
        )
        self._progress.refresh()
        self._done += 1
        return self.budget.next()

    def tick(self, part: float) -> None:
        """Advances the case that is measured."""
        self._progress.update(self._task, completed=(self._done - 1 + part) * self.budget.planned)
        if time.perf_counter() - self._drawn > 0.5:
            self._progress.refresh()
            self._drawn = time.perf_counter()
