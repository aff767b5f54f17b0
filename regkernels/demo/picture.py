"""Draws the results as a picture of three panels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from regkernels.demo.results import Results, percent
from regkernels.demo.training import Recipe, Run

# Okabe and Ito's palette, which people with any kind of colour vision can tell apart.
_COLOURS = {
    Recipe.NONE: "#7f7f7f",
    Recipe.TEXTBOOK: "#E69F00",
    Recipe.SUBGRADIENT: "#0072B2",
    Recipe.PROX: "#009E73",
}
_WIDTH, _HEIGHT, _DPI = 12.0, 4.6, 125  # 1500 x 575 pixels


def draw(results: Results, output: Path) -> None:
    """Writes the picture. Needs no display: nothing of pyplot is involved."""
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.06)
    figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=_DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    histogram, trade, curves = figure.subplots(1, 3, width_ratios=(1.35, 1, 1))
    figure.suptitle(_headline(results), fontsize=13, fontweight="bold")
    _draw_histogram(histogram, results)
    _draw_trade(trade, results)
    _draw_curves(curves, results)
    for axes in (histogram, trade, curves):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        axes.grid(color="#e6e6e6", linewidth=0.8)
    figure.savefig(output, format="png")


def _name(recipe: Recipe) -> str:
    return recipe.value.replace(' "', " “").replace('"', "”")


def _headline(results: Results) -> str:
    prox, textbook = results.runs[Recipe.PROX], results.runs[Recipe.TEXTBOOK]
    return (
        f"{_name(Recipe.PROX)}: {percent(prox.zeros)} of the weights exactly zero, accuracy {percent(prox.accuracy)} "
        f"(textbook {percent(textbook.accuracy)}), step {results.speedup(Recipe.PROX):.1f} × as fast"
    )


def _draw_curves(axes: Any, results: Results) -> None:
    """Draws the textbook recipe wide and pale, and "subgradient", which lies on it, thin and dashed on top.

    Not the model without a penalty: it fits the training images better, and is no better on others.
    """
    looks: dict[Recipe, dict[str, Any]] = {
        Recipe.TEXTBOOK: {"linewidth": 7, "alpha": 0.45, "solid_capstyle": "round"},
        Recipe.SUBGRADIENT: {"linewidth": 1.8, "linestyle": (0, (3, 2))},
        Recipe.PROX: {"linewidth": 1.8},
    }
    epochs = np.arange(1, results.settings.epochs + 1)
    for recipe, look in looks.items():
        means = np.asarray(results.runs[recipe].losses).reshape(len(epochs), -1).mean(axis=1)
        axes.plot(epochs, means, color=_COLOURS[recipe], label=_name(recipe), **look)
    axes.set_yscale("log")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    axes.set_ylabel("training loss (cross-entropy)")
    if results.same_curve:
        title = f"“subgradient” is the textbook recipe:\nlosses differ by at most {results.single.difference:.1g}"
    else:
        title = f"“subgradient” is NOT the textbook recipe:\nlosses differ by {results.single.difference:.1g}"
    axes.set_title(title, fontsize=11)
    axes.legend(loc="upper right", frameon=False)


def _draw_histogram(axes: Any, results: Results) -> None:
    """Draws sizes of the weights on a logarithmic axis, which has no zero: exact zeros get a bar of their own at its left."""
    least, most = -8.0, 0.5
    edges = np.linspace(least, most, 69)
    bar = least - 1.2
    zeros = 0
    for recipe, alpha in ((Recipe.TEXTBOOK, 0.6), (Recipe.PROX, 1)):
        sizes = results.runs[recipe].weights.abs().double().numpy()
        logarithms = np.clip(np.log10(sizes[sizes > 0]), least, most - 1e-9)
        axes.hist(logarithms, edges, color=_COLOURS[recipe], alpha=alpha, label=_name(recipe))
        zeros = len(sizes) - len(logarithms)
        if zeros:
            axes.bar(bar, zeros, width=0.7, color=_COLOURS[recipe])
            axes.text(
                bar + 0.55, zeros, f"{zeros:,} weights\nare exactly 0", va="top", color=_COLOURS[recipe], weight="bold"
            )
    axes.set_yscale("log")
    axes.set_ylim(1, 30 * max(zeros, 10_000))
    textbook, prox = (percent(results.runs[recipe].zeros) for recipe in (Recipe.TEXTBOOK, Recipe.PROX))
    axes.set_title(f"“prox” sets {prox} of the weights to zero,\nthe textbook recipe {textbook}", fontsize=11)
    axes.xaxis.set_major_locator(FixedLocator([bar, -8, -6, -4, -2, 0]))
    axes.set_xticklabels(["0", "≤$10^{-8}$", *(f"$10^{{{power}}}$" for power in (-6, -4, -2, 0))])
    axes.set_xlabel("size of a weight")
    axes.set_ylabel("number of weights")
    axes.legend(loc="upper right", frameon=False)


def _draw_trade(axes: Any, results: Results) -> None:
    """Draws zeros on an axis that is logarithmic in what remains, so that 90, 99 and 99.9 % are equally far apart."""
    textbook, prox = (
        [(_remaining(run), 100 * run.accuracy) for run in results.sweep[recipe]]
        for recipe in (Recipe.TEXTBOOK, Recipe.PROX)
    )
    l1_values = results.settings.l1_values
    axes.axhline(100 * results.runs[Recipe.NONE].accuracy, color=_COLOURS[Recipe.NONE], label=_name(Recipe.NONE))
    axes.plot(*zip(*textbook, strict=True), "s", color=_COLOURS[Recipe.TEXTBOOK], label=_name(Recipe.TEXTBOOK))
    axes.plot(*zip(*prox, strict=True), "o-", color=_COLOURS[Recipe.PROX], label=_name(Recipe.PROX))
    for number, pair in enumerate(zip(textbook, prox, strict=True)):
        label = "" if number else "pairs with the same l1"
        axes.plot(*zip(*pair, strict=True), color="#666666", linewidth=1, linestyle=":", zorder=1, label=label)
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.xaxis.set_major_locator(FixedLocator([1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda left, _: f"{100 * (1 - left):.3g}"))
    axes.set_ylim(min(90, *(accuracy - 1 for _, accuracy in textbook + prox)), 100)
    axes.set_xlabel(f"weights exactly zero (%), l1 = {min(l1_values):g} … {max(l1_values):g}")
    axes.set_ylabel("test accuracy (%)")
    best = results.sparsest_good_run
    if best is None:
        title = "Here zeros cost more than\none percentage point of accuracy"
    else:
        title = f"{percent(best.zeros)} zeros cost at most\none percentage point of accuracy"
    axes.set_title(title, fontsize=11)
    axes.legend(loc="lower left", frameon=False)


def _remaining(run: Run) -> float:
    return max(1 - run.zeros, 1 / len(run.weights))  # the axis has no place for none at all
