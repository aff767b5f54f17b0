"""Tells what cross-validation has found: as a table in the form of scikit-learn's, and as a drawing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy

from regkernels.selection.fold_training import Best
from regkernels.selection.grid import Grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def cv_results(grid: Grid, best: Best) -> dict[str, Any]:
    """Returns one array per column with an entry per candidate, named as in scikit-learn's ``GridSearchCV.cv_results_``."""
    scores = best.scores.numpy()
    means = scores.mean(1)
    with numpy.errstate(invalid="ignore"):  # of those that have diverged, the deviation is NaN
        deviations = scores.std(1)
    columns: dict[str, Any] = {
        f"param_{key}": numpy.array(values)
        for key, values in zip(grid.keys, zip(*grid.points, strict=True), strict=True)
    }
    columns["params"] = [grid.options(index) for index in range(len(grid))]
    for fold in range(scores.shape[1]):
        columns[f"split{fold}_test_score"] = scores[:, fold]
        columns[f"split{fold}_epochs"] = best.epochs[:, fold].numpy()
    return {
        **columns,
        "mean_test_score": means,
        "std_test_score": deviations,
        "rank_test_score": numpy.array([1 + int((means > mean).sum()) for mean in means]),
        "mean_nonzeros": best.nonzeros.double().mean(1).numpy(),
    }


def draw(results: Mapping[str, Any], grid: Grid, chosen: int, folds: int, axes: Axes | None) -> Axes:
    """Draws mean scores over the strengths of the first key, one line for each setting of the others, with standard errors.

    Raises:
        ImportError: without matplotlib, where ``axes`` is None.
    """
    if axes is None:
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise ImportError(f"plot needs matplotlib ({error}): pip install matplotlib") from error
        axes = pyplot.subplots(layout="constrained")[1]
    errors = results["std_test_score"] / max(1, folds - 1) ** 0.5
    settings = list(dict.fromkeys(point[1:] for point in grid.points))
    for setting in settings:
        own = sorted((point[0], index) for index, point in enumerate(grid.points) if point[1:] == setting)
        rows = [index for _, index in own]
        label = ", ".join(f"{key} {value:.3g}" for key, value in zip(grid.keys[1:], setting, strict=True))
        axes.errorbar(
            [strength for strength, _ in own],
            results["mean_test_score"][rows],
            errors[rows],
            marker=".",
            capsize=2,
            label=label,
        )
    strengths = [point[0] for point in grid.points]
    if min(strengths) > 0:
        axes.set_xscale("log")
    elif max(strengths) > 0:
        axes.set_xscale("symlog", linthresh=min(strength for strength in strengths if strength > 0))
    axes.axvline(strengths[chosen], color="black", linestyle=":", linewidth=1)
    axes.set_xlabel(f"{grid.keys[0]} (dotted: chosen)")
    axes.set_ylabel("mean held-out score (bars: standard error)")
    axes.spines[["top", "right"]].set_visible(False)
    if len(settings) > 1:
        axes.legend(frameon=False)
    return axes
