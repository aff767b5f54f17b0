"""Draws the elementwise penalties and their proximal operators, as docs/penalty_family.md shows them."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from regkernels import prox

OPERATORS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "l1": lambda v, step: prox.soft_threshold(v, step),
    "l1 and weight_decay": lambda v, step: prox.elastic_net(v, 1.0, 0.5, step=step),
    "huber": lambda v, step: prox.huber(v, 1.0, step=step),
    "log_sum, eps 0.5": lambda v, step: prox.log_sum(v, 0.5, eps=0.5, step=step),
    "mcp": lambda v, step: prox.mcp(v, 1.0, step=step),
    "scad": lambda v, step: prox.scad(v, 1.0, step=step),
    "l_half": lambda v, step: prox.l_half(v, 0.55, step=step),
    "l0": lambda v, step: prox.l0(v, 0.5, step=step),
}
END = 5.0


def penalty(operator: Callable[[Tensor, float], Tensor]) -> tuple[Tensor, Tensor]:
    """Returns points of the penalty p that an operator belongs to: x = prox(v) implies ``p'(x) = (v - x) / step``, so p is its integral."""
    step = 1e-3
    v = torch.linspace(0, END + 1, 60_001, dtype=torch.float64)
    x = operator(v, step)
    slope = (v - x) / step
    return x, torch.cat([x.new_zeros(1), torch.cumsum(x.diff() * (slope[1:] + slope[:-1]) / 2, 0)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", help="the PNG file to write")
    args = parser.parse_args()
    figure = Figure(figsize=(10, 5.4), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    v = torch.linspace(0, END, 2001, dtype=torch.float64)
    panels = figure.subplots(2, 4, sharex=True, sharey=True)
    for axes, (name, operator) in zip(panels.flat, OPERATORS.items(), strict=True):
        shrunk, (points, values) = operator(v, 1.0), penalty(operator)
        jumps = shrunk.diff() > 0.05
        shrunk[1:][jumps] = torch.nan  # no line where there is no value
        axes.plot([0, END], [0, END], color="#999999", linewidth=0.8, linestyle=(0, (4, 3)))
        axes.plot(points, values, color="#E69F00", linewidth=1.6, label="penalty of x")
        axes.plot(v, shrunk, color="#0072B2", linewidth=2.0, label="prox of v, step 1")
        axes.set_title(name, fontsize=11, family="monospace")
        axes.set(xlim=(0, END), ylim=(-0.12, END))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#ececec", linewidth=0.8)
        axes.set_axisbelow(True)
    for axes in panels[1]:
        axes.set_xlabel("v, x")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(args.picture)


if __name__ == "__main__":
    main()
