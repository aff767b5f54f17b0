"""Draws the training of gpt.py from what it logged for TensorBoard: losses and zeros against the step."""

from __future__ import annotations

import argparse

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="--out of a run of gpt.py with --tensorboard")
    parser.add_argument("picture", help="the PNG file to write")
    args = parser.parse_args()
    events = EventAccumulator(args.folder).Reload()

    def curve(name: str) -> tuple[list[int], list[float]]:
        return [event.step for event in events.Scalars(name)], [event.value for event in events.Scalars(name)]

    figure = Figure(figsize=(9, 3.8), dpi=125, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    losses, zeros = figure.subplots(1, 2)
    losses.plot(*curve("loss"), color="#E69F00", label="training")
    losses.plot(*curve("validation"), color="#0072B2", label="validation")
    losses.set(xlabel="step", ylabel="cross-entropy (nats per byte)", title="Loss")
    losses.legend(frameon=False)
    steps, shares = curve("zeros")
    zeros.plot(steps, [100 * share for share in shares], color="#009E73")
    zeros.set(xlabel="step", ylabel="weights exactly zero (%)", title="Zeros in the MLPs", ylim=(0, 100))
    for axes in (losses, zeros):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_xlim(left=0)
    figure.savefig(args.picture)


if __name__ == "__main__":
    main()
