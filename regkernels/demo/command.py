"""Runs the demo in its order: trainings, with the stopwatch before each, then the table and the picture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from regkernels.demo import picture, report
from regkernels.demo.data import Digits, load
from regkernels.demo.results import Results, agreement
from regkernels.demo.timing import Stopwatch
from regkernels.demo.training import Recipe, Run, Settings, steps, train

_SAME = (Recipe.TEXTBOOK, Recipe.SUBGRADIENT)  # the same mathematics, once by autograd and once in the optimizer
_SWEPT = (Recipe.TEXTBOOK, Recipe.PROX)


def run(output: Path, *, seed: int, epochs: int | None, quick: bool) -> None:
    """Runs the whole demo, prints to the terminal and writes ``output``."""
    settings = Settings(seed=seed)
    if quick:
        settings = replace(settings, epochs=3, l1_values=(settings.l1, 1e-3), timing_rounds=5)
    if epochs is not None:
        settings = replace(settings, epochs=epochs)
    console = Console(highlight=False)
    digits = load(seed)
    console.print(report.introduction(settings, digits))
    with _one_thread():
        results = _results(settings, digits, console)
    report.show(results, console)
    picture.draw(results, output)
    console.print(f"The picture is in {output}.", soft_wrap=True, markup=False)


def _results(settings: Settings, digits: Digits, console: Console) -> Results:
    others = [l1 for l1 in settings.l1_values if l1 != settings.l1]
    stopwatch = Stopwatch(digits, settings)
    trainings = len(Recipe) + len(_SAME) + len(_SWEPT) * len(others)
    with Progress(
        TextColumn("{task.description:<46}"),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as progress:
        task = progress.add_task("", total=trainings * steps(digits, settings))

        def step() -> None:
            progress.advance(task)

        def trained(recipe: Recipe, l1: float, dtype: torch.dtype = torch.float32) -> Run:
            precision = " in float64" if dtype == torch.float64 else ""
            progress.update(task, description=f"{recipe.value}, l1 = {l1:g}{precision}")
            stopwatch.measure(settings.timing_rounds)
            return train(recipe, digits.to(dtype), settings, l1, step)

        runs = {recipe: trained(recipe, settings.l1) for recipe in Recipe}
        twice = {recipe: trained(recipe, settings.l1, torch.float64) for recipe in _SAME}
        sweep = {
            recipe: [runs[recipe] if l1 == settings.l1 else trained(recipe, l1) for l1 in settings.l1_values]
            for recipe in _SWEPT
        }
    return Results(
        settings=settings,
        runs=runs,
        sweep=sweep,
        single=agreement(runs[Recipe.TEXTBOOK], runs[Recipe.SUBGRADIENT], 1e-2),
        double=agreement(twice[Recipe.TEXTBOOK], twice[Recipe.SUBGRADIENT], 1e-6),
        milliseconds=stopwatch.milliseconds(),
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Takes one thread: the matrices are so small that more mostly wait for each other, all the more on a machine with other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
