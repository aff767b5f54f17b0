"""Trains with a group lasso on handwritten digits: hidden units die in training, the network without them is the same and faster.

A network with more hidden units than it needs is trained without a penalty, with `group_l1` and with `l1` on the weights of its hidden
layers, for several strengths and seeds. For each penalty the smallest network is chosen that costs at most half a percentage point
of accuracy on validation images; what is told of it is measured on test images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import digits_report
import torch
from digits_times import forward_times
from rich.console import Console
from rich.progress import Progress
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import regkernels as rk

NONE = "none"


@dataclass(frozen=True)
class Settings:
    """Holds what can be turned. ``tolerance``: the accuracy on validation images that a penalty may cost, from 0 to 1."""

    hidden: tuple[int, int] = (512, 256)
    seeds: int = 3
    epochs: int = 40
    refit_epochs: int = 20
    batch_size: int = 64
    lr: float = 1e-2
    group_l1: tuple[float, ...] = (1e-4, 2e-4, 3e-4, 5e-4, 8e-4)
    l1: tuple[float, ...] = (3e-4, 6e-4, 1e-3, 1.6e-3)
    tolerance: float = 0.005
    timing_rounds: int = 100

    @property
    def variants(self) -> list[tuple[str, float]]:
        """Lists penalties and strengths."""
        return [(NONE, 0.0), *(("group_l1", s) for s in self.group_l1), *(("l1", s) for s in self.l1)]


QUICK = Settings(seeds=1, epochs=12, refit_epochs=3, group_l1=(3e-4, 1e-3), l1=(1e-3,), tolerance=0.02, timing_rounds=3)


class Digits(NamedTuple):
    """Holds images as rows of 64 numbers from 0 to 1, labels from 0 to 9; which are learnt, which choose and which test."""

    images: Tensor
    labels: Tensor
    train: Tensor
    validation: Tensor
    test: Tensor


class Trained(NamedTuple):
    """Holds a run. ``alive``: hidden units whose row is not zero, after each epoch. ``compacted`` shares nothing with ``model``."""

    model: nn.Sequential
    compacted: rk.Compacted
    validation: float
    test: float
    compacted_test: float
    alive: list[int]


def load() -> Digits:
    """Takes 1797 images: a quarter to test with, a fifth of the rest to choose with; each digit in all in proportion."""
    images, labels = load_digits(return_X_y=True)
    rest, test = train_test_split(range(len(labels)), test_size=0.25, random_state=0, stratify=labels)
    train, validation = train_test_split(rest, test_size=0.2, random_state=0, stratify=labels[rest])
    parts = map(torch.tensor, (train, validation, test))
    return Digits(torch.as_tensor(images / 16, dtype=torch.float32), torch.as_tensor(labels), *parts)


def network(hidden: tuple[int, int], seed: int) -> nn.Sequential:
    """Makes a network; the same seed gives the same start."""
    torch.manual_seed(seed)
    first, second = hidden
    return nn.Sequential(nn.Linear(64, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 10))


def in_hidden_layer(name: str, param: Tensor) -> bool:
    """Tells what is penalised: rows of the last layer are the ten digits, which shall stay; biases of units that die become constants."""
    return param.dim() == 2 and name != "4.weight"


def optimizer_for(model: nn.Module, penalty: str, strength: float, lr: float) -> rk.optim.Adam:
    """Makes an Adam; its step size is one number per row where groups are penalised, per weight where they are not."""
    penalties = {} if penalty == NONE else {penalty: strength}
    return rk.optim.Adam(rk.param_groups(model, regularise=in_hidden_layer, **penalties), lr=lr, stats=True)


def train(
    penalty: str, strength: float, seed: int, digits: Digits, settings: Settings, after_epoch: Callable[[], None]
) -> Trained:
    """Trains a fresh network and compacts it."""
    model = network(settings.hidden, seed)
    optimizer = optimizer_for(model, penalty, strength, settings.lr)
    alive = []

    def count() -> None:
        alive.append(sum(settings.hidden) - int(optimizer.stats.zero_groups[0]))
        after_epoch()

    fit(model, optimizer, digits, settings.epochs, settings.batch_size, seed, count)
    compacted = rk.compact(model.eval(), digits.images[:64])  # with images, so that the outputs are compared
    return Trained(
        model,
        compacted,
        accuracy(model, digits, digits.validation),
        accuracy(model, digits, digits.test),
        accuracy(compacted.model, digits, digits.test),
        alive,
    )


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    digits: Digits,
    epochs: int,
    batch_size: int,
    seed: int,
    after_epoch: Callable[[], None],
) -> None:
    """Trains on shuffled batches, the same for the same seed; the step size falls to 0 along a cosine."""
    batches = len(digits.train) // batch_size
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = digits.train[torch.randperm(len(digits.train), generator=generator)]
        for chosen in order[: batches * batch_size].split(batch_size):
            optimizer.zero_grad()
            cross_entropy(model(digits.images[chosen]), digits.labels[chosen]).backward()
            optimizer.step()
            schedule.step()
        after_epoch()


@torch.no_grad()
def accuracy(model: nn.Module, digits: Digits, chosen: Tensor) -> float:
    """Returns the share of images that are recognised."""
    return (model(digits.images[chosen]).argmax(1) == digits.labels[chosen]).double().mean().item()


def units(model: nn.Module) -> list[int]:
    """Counts outputs of the hidden layers."""
    return [layer.out_features for layer in model.modules() if isinstance(layer, nn.Linear)][:-1]


def point(penalty: str, strength: float, runs: list[Trained]) -> digits_report.Point:
    return digits_report.Point(
        penalty=penalty,
        strength=strength,
        validation=[run.validation for run in runs],
        test=[run.test for run in runs],
        compacted_test=[run.compacted_test for run in runs],
        hidden=[units(run.compacted.model) for run in runs],
        parameters=[run.compacted.parameters for run in runs],
        alive=[run.alive for run in runs],
    )


def choose(points: list[digits_report.Point], penalty: str, tolerance: float) -> int:
    """Returns the index of the smallest network that is accurate enough; of the most accurate one where none is.

    Sizes and accuracies are means over the seeds, the accuracies of validation images.
    """
    (without,) = (p for p in points if p.penalty == NONE)
    candidates = [index for index, p in enumerate(points) if p.penalty == penalty]
    enough = digits_report.mean(without.validation) - tolerance
    good = [index for index in candidates if digits_report.mean(points[index].validation) >= enough]
    if good:
        return min(good, key=lambda index: digits_report.mean(points[index].parameters))
    return max(candidates, key=lambda index: digits_report.mean(points[index].validation))


def compare(runs: list[Trained], digits: Digits) -> tuple[float, bool]:
    """Tells how far outputs of the large and the small networks are apart, relative to the largest, and whether the answers are the same."""
    with torch.no_grad():
        pairs = [(run.model(digits.images), run.compacted.model(digits.images)) for run in runs]
    difference = max(((small - large).abs().max() / large.abs().max()).item() for large, small in pairs)
    return difference, all(torch.equal(large.argmax(1), small.argmax(1)) for large, small in pairs)


def refit(run: Trained, seed: int, digits: Digits, settings: Settings) -> float:
    """Trains the small network on, without the penalty; returns its accuracy on test images."""
    model = run.compacted.model
    optimizer = rk.optim.Adam(model.parameters(), lr=settings.lr / 10)
    fit(model, optimizer, digits, settings.refit_epochs, settings.batch_size, seed, lambda: None)
    return accuracy(model, digits, digits.test)


def find(settings: Settings, console: Console) -> digits_report.Findings:
    """Does the whole computation."""
    digits = load()
    runs: dict[tuple[str, float], list[Trained]] = {}
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=len(settings.variants) * settings.seeds * settings.epochs)
        for variant in settings.variants:
            progress.update(task, description=f"{variant[0]} {variant[1] or ''}")
            runs[variant] = [
                train(*variant, seed, digits, settings, lambda: progress.advance(task))
                for seed in range(settings.seeds)
            ]
    points = [point(*variant, trained) for variant, trained in runs.items()]
    chosen = {penalty: choose(points, penalty, settings.tolerance) for penalty in ("group_l1", "l1")}
    group, plain = (runs[settings.variants[chosen[penalty]]] for penalty in ("group_l1", "l1"))
    example = f"{rk.sparsity_report(group[0].model)}\n\n{group[0].compacted}"

    networks = {
        NONE: runs[settings.variants[0]][0].model,
        "group_l1": group[0].model,
        "group_l1, compacted": group[0].compacted.model,
        "l1": plain[0].model,
        "l1, compacted": plain[0].compacted.model,
    }
    difference, same = compare(group + plain, digits)
    times = [
        time for batch in (1, 1000) for time in forward_times(networks, digits.images[:batch], settings.timing_rounds)
    ]
    return digits_report.Findings(
        machine=digits_report.machine(),
        hidden=list(settings.hidden),
        tolerance=settings.tolerance,
        images=[len(digits.train), len(digits.validation), len(digits.test)],
        example=example,
        points=points,
        chosen=chosen,
        difference=difference,
        same_predictions=same,
        refit_epochs=settings.refit_epochs,
        refit=[refit(run, seed, digits, settings) for seed, run in enumerate(group)],
        times=times,
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Takes one thread: the matrices are so small that more mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few strengths, one seed, few epochs")
    parser.add_argument("--seeds", type=int, help=f"trainings per strength (default: {Settings.seeds})")
    parser.add_argument("--epochs", type=int, help=f"of each training (default: {Settings.epochs})")
    parser.add_argument("--picture", metavar="FILE", type=Path, help="a PNG file to write")
    parser.add_argument("--record", metavar="FILE", type=Path, help="a JSON file to write, with all that was measured")
    args = parser.parse_args(arguments)
    given = {name: value for name in ("seeds", "epochs") if (value := getattr(args, name)) is not None}
    for name, value in given.items():
        if value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    console = Console()
    with one_thread():
        findings = find(replace(QUICK if args.quick else Settings(), **given), console)
    console.print(findings.example, highlight=False, soft_wrap=True)
    console.print(digits_report.as_table(findings))
    console.print(digits_report.in_words(findings), highlight=False)
    if args.record:
        digits_report.write(findings, args.record)
    if args.picture:
        digits_report.draw(findings, args.picture)


if __name__ == "__main__":
    main()
