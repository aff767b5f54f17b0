"""Holds what the demo finds out, and what the table and the picture both say about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from regkernels.demo.timing import TEXTBOOK, Variant
from regkernels.demo.training import Recipe, Run, Settings


class Agreement(NamedTuple):
    """Holds the largest difference between two loss curves, step by step, and what is allowed.

    Where a weight crosses zero its penalty's gradient jumps, so a difference in the last bit grows over a training.
    Hence the wide tolerance in float32, whose last bit is 1e-7 of a number, and the second look in float64.
    """

    difference: float
    tolerance: float

    @property
    def holds(self) -> bool:
        return self.difference <= self.tolerance  # False for NaN, too


def agreement(one: Run, other: Run, tolerance: float) -> Agreement:
    """Compares the losses of two runs."""
    differences = [abs(a - b) for a, b in zip(one.losses, other.losses, strict=True)]
    # max() would pass over a NaN that is not the first
    return Agreement(float("nan") if any(d != d for d in differences) else max(differences), tolerance)


class Results(NamedTuple):
    """Holds all of it. ``sweep`` has a run per l1 value; ``milliseconds`` an optimizer step per variant."""

    settings: Settings
    runs: Mapping[Recipe, Run]
    sweep: Mapping[Recipe, Sequence[Run]]
    single: Agreement
    double: Agreement
    milliseconds: Mapping[Variant, float]

    def speedup(self, recipe: Recipe, over: Variant = TEXTBOOK) -> float:
        """Says how many times as fast as the textbook recipe a step is."""
        return self.milliseconds[over] / self.milliseconds[Variant(recipe)]

    @property
    def same_curve(self) -> bool:
        """Tells whether the textbook recipe and regkernels' subgradient mode computed the same thing."""
        return self.single.holds and self.double.holds

    @property
    def accuracy_gap(self) -> float:
        """Says how much accuracy prox loses against the textbook recipe with the same penalty; negative where it gains."""
        return self.runs[Recipe.TEXTBOOK].accuracy - self.runs[Recipe.PROX].accuracy

    @property
    def sparsest_good_run(self) -> Run | None:
        """Picks, of the prox runs within one percentage point of the accuracy without a penalty, the one with the most zeros."""
        enough = self.runs[Recipe.NONE].accuracy - 0.01
        good = [run for run in self.sweep[Recipe.PROX] if run.accuracy >= enough]
        return max(good, key=lambda run: run.zeros, default=None)


def percent(share: float, digits: int = 1) -> str:
    """Writes 0.967 as "96.7 %"; never "100.0 %" or "0.0 %" for what only nearly is."""
    text = f"{100 * share:.{digits}f}"
    if float(text) == 100 and share < 1:
        text = f"> {100 - 10**-digits:.{digits}f}"
    if float(text.removeprefix("> ")) == 0 and share > 0:
        text = f"< {10**-digits:.{digits}f}"
    return f"{text} %"
