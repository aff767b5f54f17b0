"""Trains the network with each of the four recipes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import regkernels
from regkernels.demo.data import Digits, batches, batches_per_epoch


class Recipe(Enum):
    """Names how the weights are regularised; the values are what people read."""

    NONE = "no penalty"
    TEXTBOOK = "textbook recipe"
    SUBGRADIENT = 'regkernels "subgradient"'
    PROX = 'regkernels "prox"'


@dataclass(frozen=True)
class Settings:
    """Holds everything that can be turned. The penalty is ``l1 * sum |w| + l2 * sum w**2``."""

    seed: int = 0
    epochs: int = 50
    batch_size: int = 128
    lr: float = 7e-3
    l1: float = 2e-4
    l2: float = 1e-5
    l1_values: tuple[float, ...] = (1e-6, 1e-5, 3e-5, 1e-4, 2e-4, 5e-4, 1e-3)
    timing_rounds: int = 30  # per block; there is one before each training


class Run(NamedTuple):
    """Holds what came of a training. ``weights`` are the penalised ones, flat."""

    l1: float
    losses: list[float]
    accuracy: float
    weights: Tensor

    @property
    def zeros(self) -> float:
        """Returns the share of weights that are exactly zero."""
        return (self.weights == 0).double().mean().item()


def network(seed: int, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Makes a network of 64 pixels, two hidden layers of 512, 10 digits: 300,032 weights. The same seed gives the same start."""
    torch.manual_seed(seed)
    layers = [nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)]
    return nn.Sequential(*layers).to(dtype)


def penalised(model: nn.Module) -> list[nn.Parameter]:
    """Returns the weights that are penalised: those with two dimensions, not the biases."""
    return [param for param in model.parameters() if param.dim() >= 2]


def textbook_penalty(weights: list[nn.Parameter], l1: float, l2: float) -> Tensor:
    """Computes the penalty as it is written in textbooks, forums and tutorials."""
    return l1 * sum(w.abs().sum() for w in weights) + l2 * sum(w.square().sum() for w in weights)  # type: ignore[return-value]


def optimizer_for(
    recipe: Recipe, model: nn.Module, settings: Settings, l1: float, *, fused: bool | None = None
) -> torch.optim.Optimizer:
    """Makes an Adam; regkernels' knows the penalty. ``weight_decay = 2 * l2``, for torch's weight decay has the factor 1/2."""
    if recipe in (Recipe.NONE, Recipe.TEXTBOOK):
        return torch.optim.Adam(model.parameters(), lr=settings.lr, fused=fused)
    groups = regkernels.param_groups(model, l1=l1, weight_decay=2 * settings.l2)
    return regkernels.optim.Adam(groups, lr=settings.lr, l1_mode="prox" if recipe is Recipe.PROX else "subgradient")


def steps(digits: Digits, settings: Settings) -> int:
    """Counts the optimizer steps of a training."""
    return batches_per_epoch(digits, settings.batch_size) * settings.epochs


def train(recipe: Recipe, digits: Digits, settings: Settings, l1: float, after_step: Callable[[], None]) -> Run:
    """Trains a fresh network in the type of the images. The step size falls to 0 along a cosine.

    ``losses`` has the cross-entropy of each batch, without the penalty, so that all recipes can be compared.
    """
    model = network(settings.seed, digits.train_images.dtype)
    weights = penalised(model)
    optimizer = optimizer_for(recipe, model, settings, l1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps(digits, settings))
    losses = []
    for images, labels in batches(digits, settings.batch_size, settings.epochs, settings.seed):
        optimizer.zero_grad()
        loss = cross_entropy(model(images), labels)
        losses.append(loss.item())
        if recipe is Recipe.TEXTBOOK:
            loss = loss + textbook_penalty(weights, l1, settings.l2)
        loss.backward()
        optimizer.step()
        schedule.step()
        after_step()
    with torch.no_grad():
        correct = model(digits.test_images).argmax(1) == digits.test_labels
    flat = torch.cat([weight.detach().flatten() for weight in weights])
    return Run(l1, losses, correct.double().mean().item(), flat)
