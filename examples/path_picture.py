"""Draws what the pictures of diabetes_path.py and sparse_logistic.py have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.isotonic import IsotonicRegression

from regkernels.selection import RegularizationPath

_NAMED = 8
_COLOURS = colormaps["tab10"].colors


def panels() -> tuple[Figure, Any]:
    """Makes a figure with two panels over a logarithmic axis of strengths."""
    figure = Figure(figsize=(10, 4.2), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12)
    both = figure.subplots(1, 2, width_ratios=(1.25, 1))
    for axes in both:
        axes.set_xscale("log")
        axes.set_xlabel("lambda")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, both


def coefficients(
    axes: Any, path: RegularizationPath, names: Sequence[str], their_lambdas: Sequence[float], theirs: numpy.ndarray
) -> None:
    """Draws our weights as lines, scikit-learn's as points. The eight largest at the end of the path have a colour and a name."""
    lambdas, weights = path.lambdas.tolist(), path.weights.double().numpy()
    largest = numpy.argsort(-numpy.abs(weights[-1]))[:_NAMED].tolist()
    colours = dict.fromkeys(range(len(names)), "#b0b0b0") | dict(zip(sorted(largest), _COLOURS, strict=False))
    every = max(1, len(their_lambdas) // 16)
    for index in sorted(colours, key=largest.__contains__):
        axes.plot(lambdas, weights[:, index], color=colours[index], linewidth=1.3)
        axes.plot(their_lambdas[::every], theirs[::every, index], "o", color=colours[index], markersize=3.2)
    _write_names(axes, lambdas, {names[i]: (weights[-1, i], colours[i]) for i in largest})
    axes.axhline(0, color="#888888", linewidth=0.8, zorder=0)
    axes.set(title="Weights", ylabel="weight (inputs standardised)")
    explain(axes, "best")


def explain(axes: Any, place: str) -> None:
    """Says what is a line and what is a point."""
    lines = [Line2D([], [], color="#444444"), Line2D([], [], color="#444444", marker="o", linestyle="", markersize=3.2)]
    axes.legend(lines, ["regkernels", "scikit-learn"], frameon=False, loc=place)


def _write_names(axes: Any, lambdas: Sequence[float], ends: dict[str, tuple[float, str]]) -> None:
    """Writes names left of the lines, each as near to its line as leaves all of them readable, with a stroke from one to the other."""
    share = 0.1 + 0.014 * max(map(len, ends))  # of the width of the panel
    axes.set_xlim(lambdas[-1] * (lambdas[-1] / lambdas[0]) ** (share / (1 - share)), lambdas[0] * 1.2)
    low, high = axes.get_ylim()
    apart = (high - low) / 22 * numpy.arange(len(ends))
    in_order = sorted(ends.items(), key=lambda item: item[1][0])
    weights = numpy.array([weight for _, (weight, _) in in_order])
    heights = IsotonicRegression().fit_transform(apart, weights - apart) + apart
    axes.set_ylim(min(low, heights[0] - (high - low) / 40), max(high, heights[-1] + (high - low) / 40))
    for (name, (weight, colour)), height in zip(in_order, heights, strict=True):
        axes.annotate(
            name,
            (lambdas[-1], weight),
            (lambdas[-1] * 0.8, height),
            fontsize=8,
            color=colour,
            ha="right",
            va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 2},
        )
