"""Measures what an optimizer step costs, with all that the penalty adds to it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import NamedTuple

from torch.nn.functional import cross_entropy

from regkernels.demo.data import Digits
from regkernels.demo.training import Recipe, Settings, network, optimizer_for, penalised, textbook_penalty

_WARM_UP = 3  # rounds


class Variant(NamedTuple):
    """Names a recipe, with torch's default implementation of Adam or with its fused one."""

    recipe: Recipe
    fused: bool = False


TEXTBOOK = Variant(Recipe.TEXTBOOK)
NONE_FUSED, TEXTBOOK_FUSED = Variant(Recipe.NONE, fused=True), Variant(Recipe.TEXTBOOK, fused=True)
VARIANTS = (*map(Variant, Recipe), NONE_FUSED, TEXTBOOK_FUSED)


class Stopwatch:
    """Measures all variants in turns, in several blocks spread over the demo.

    Whatever else the machine does then meets all variants alike. The loss's own forward and backward are left out, since
    they are the same for all: every step starts from the same gradients. Timed are, for the textbook recipe, the
    penalty's forward, its backward and the step; for the others the step, which has the penalty in it.
    """

    def __init__(self, digits: Digits, settings: Settings) -> None:
        self._prepared = {variant: _prepare(variant, digits, settings) for variant in VARIANTS}
        self._seconds: dict[Variant, list[float]] = {variant: [] for variant in VARIANTS}

    def measure(self, rounds: int) -> None:
        """Measures one block."""
        collecting = gc.isenabled()
        gc.disable()
        try:
            for turn in range(-_WARM_UP, rounds):
                first = turn % len(VARIANTS)  # nobody always comes after the same one
                for variant in VARIANTS[first:] + VARIANTS[:first]:
                    seconds = self._once(variant)
                    if turn >= 0:
                        self._seconds[variant].append(seconds)
        finally:
            if collecting:
                gc.enable()

    def milliseconds(self) -> dict[Variant, float]:
        """Returns medians over all blocks."""
        return {variant: 1e3 * median(seconds) for variant, seconds in self._seconds.items()}

    def _once(self, variant: Variant) -> float:
        reset, step = self._prepared[variant]
        reset()
        start = perf_counter()
        step()
        return perf_counter() - start


def _prepare(variant: Variant, digits: Digits, settings: Settings) -> tuple[Callable[[], None], Callable[[], None]]:
    """Makes what comes before each measurement, and what is measured."""
    model = network(settings.seed)
    weights = penalised(model)
    optimizer = optimizer_for(variant.recipe, model, settings, settings.l1, fused=variant.fused or None)
    size = settings.batch_size
    cross_entropy(model(digits.train_images[:size]), digits.train_labels[:size]).backward()
    gradients = [(param.grad, param.grad.clone()) for param in model.parameters() if param.grad is not None]

    def reset() -> None:
        for gradient, loss_gradient in gradients:
            gradient.copy_(loss_gradient)

    def step() -> None:
        if variant.recipe is Recipe.TEXTBOOK:
            textbook_penalty(weights, settings.l1, settings.l2).backward()
        optimizer.step()

    return reset, step
