"""Prints the results of the demo: a table and the sentences below it."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from regkernels.demo.data import Digits
from regkernels.demo.results import Agreement, Results, percent
from regkernels.demo.timing import NONE_FUSED, TEXTBOOK_FUSED, Variant
from regkernels.demo.training import Recipe, Settings, network, penalised


def introduction(settings: Settings, digits: Digits) -> str:
    """Says what is about to happen."""
    weights = sum(weight.numel() for weight in penalised(network(settings.seed)))
    return (
        f"A network with {weights:,} weights learns {len(digits.train_labels)} handwritten digits and is tested on "
        f"{len(digits.test_labels)} others, with the penalty l1 * sum |w| + l2 * sum w², l1 = {settings.l1:g}, "
        f"l2 = {settings.l2:g}. Four ways from the same start with the same batches: no penalty and the textbook recipe "
        "(the penalty is added to the loss) with torch.optim.Adam, and two modes of regkernels.optim.Adam."
    )


def show(results: Results, console: Console) -> None:
    """Prints the results."""
    console.print(_table(results))
    console.print(
        f"Time of an optimizer step with all that the penalty adds, median, 1 thread; speed against the "
        f"textbook recipe. {_fused(results)}"
    )
    console.print()
    console.print(_curves(results), style="" if results.same_curve else "bold red")
    console.print()
    console.print(story(results), style="bold")


def _table(results: Results) -> Table:
    table = Table()
    table.add_column("recipe", no_wrap=True)
    for title in ("test accuracy", "exact zeros", "ms/step", "speed"):
        table.add_column(title, justify="right")
    for recipe, run in results.runs.items():
        table.add_row(
            Text(recipe.value),
            percent(run.accuracy),
            percent(run.zeros),
            f"{results.milliseconds[Variant(recipe)]:.3f}",
            f"{results.speedup(recipe):.1f} x",
            style="bold" if recipe is Recipe.PROX else "",
        )
    return table


def _fused(results: Results) -> str:
    return (
        f"With torch's Adam(fused=True) it takes {results.milliseconds[NONE_FUSED]:.3f} ms without a penalty and "
        f"{results.milliseconds[TEXTBOOK_FUSED]:.3f} ms with the textbook recipe; "
        f'"prox" is {results.speedup(Recipe.PROX, over=TEXTBOOK_FUSED):.1f} x as fast as the latter.'
    )


def _curves(results: Results) -> str:
    if results.same_curve:
        start = 'The textbook recipe and "subgradient" are the same mathematics, and their curves are the same:'
    else:
        start = (
            'WARNING: the textbook recipe and "subgradient" should be the same mathematics, but their curves differ:'
        )
    return (
        f"{start} their losses differ by at most {_difference(results.single)} in float32 and "
        f"{_difference(results.double)} in float64."
    )


def _difference(agreement: Agreement) -> str:
    relation = "tolerance" if agreement.holds else "MORE than the tolerance"
    return f"{agreement.difference:.1g} ({relation} {agreement.tolerance:g})"


def story(results: Results) -> str:
    """Says the result in a sentence."""
    prox, textbook = results.runs[Recipe.PROX], results.runs[Recipe.TEXTBOOK]
    accuracies = f"{percent(prox.accuracy)}, textbook {percent(textbook.accuracy)}"
    if abs(results.accuracy_gap) <= 0.01:
        accuracy = f"the same accuracy within one percentage point ({accuracies})"
    elif results.accuracy_gap < 0:
        accuracy = f"a better accuracy ({accuracies})"
    else:
        accuracy = f"a lower accuracy ({accuracies})"
    return (
        f'"prox": {percent(prox.zeros)} of the weights are exactly zero, with {accuracy}, '
        f"and a step {results.speedup(Recipe.PROX):.1f} x as fast as the textbook recipe."
    )
