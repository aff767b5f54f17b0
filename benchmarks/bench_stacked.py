"""Many small networks, an l1 each: what does it cost to train them one after the other, and stacked?

Forward, backward and update of all of them, on the same batch; and a whole cross-validation, with its folds, scores and the fit to all
data. Stacked networks share every kernel, so that what is saved is what Python and autograd cost per network; it is most of the
time as long as the networks are small.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

import regkernels
from benchmarks import building
from benchmarks.building import OURS
from benchmarks.case import Case, Contender, Scope
from regkernels.selection import StackedModels

MODELS = 32
TORCH, STACKED = "torch", "regkernels, stacked"
SIZES = {"16-32-10": (16, 32, 32), "64-32-32-10": (64, 32, 64), "64-128-128-10": (64, 128, 128)}
"""Features, width of the hidden layers, rows of a batch."""
L1 = torch.logspace(-5, -2, MODELS).tolist()
STRENGTHS = torch.logspace(-5, -2, 12).tolist()
FOLDS, ROWS, BATCH, EPOCHS = 5, 400, 32, 5


def cases(scope: Scope) -> Iterator[Case]:
    for name in list(SIZES)[:2] if scope.quick else SIZES:
        features, width, rows = SIZES[name]
        data = cache(partial(batch, features, rows, scope))
        models = cache(partial(networks, features, width, deep=name.count("-") > 2, scope=scope))
        makers = {
            peer: partial(make, peer, models, data) for peer in building.taking_part([OURS, TORCH, STACKED], scope)
        }
        label = f"adamw, {MODELS} networks {name}, batches of {rows}"
        yield Case("stacked", label, makers, clock="device", x=MODELS)
    if importlib.util.find_spec("sklearn") is not None:
        yield cross_validation(scope)


def batch(features: int, rows: int, scope: Scope) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, features, device=scope.device), torch.randint(10, (rows,), device=scope.device)


def networks(features: int, width: int, *, deep: bool, scope: Scope, count: int = MODELS) -> list[nn.Module]:
    hidden = [nn.Linear(width, width), nn.ReLU()] if deep else []
    return [
        nn.Sequential(nn.Linear(features, width), nn.ReLU(), *copy.deepcopy(hidden), nn.Linear(width, 10)).to(
            scope.device
        )
        for _ in range(count)
    ]


def make(peer: str, models: Any, data: Any) -> Contender:
    own, (x, y) = copy.deepcopy(models()), data()
    step = stacked(own, x, y) if peer == STACKED else one_after_the_other(own, x, y, ours=peer == OURS)
    building.warm_up(step)
    return Contender(step, keep=own)


def stacked(models: list[nn.Module], x: Tensor, y: Tensor) -> Any:
    together = StackedModels(models)
    optimizer = regkernels.optim.AdamW(together.param_groups([{"l1": l1} for l1 in L1]), lr=1e-3)

    def step() -> None:
        together.losses(nn.functional.cross_entropy, x, y).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def one_after_the_other(models: list[nn.Module], x: Tensor, y: Tensor, *, ours: bool) -> Any:
    """Makes a step for one model after the other; torch's is without L1, which it does not have."""
    if ours:
        optimizers: list[torch.optim.Optimizer] = [
            regkernels.optim.AdamW(regkernels.param_groups(model, l1=l1), lr=1e-3)
            for model, l1 in zip(models, L1, strict=True)
        ]
    else:
        optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True) for model in models]

    def step() -> None:
        for model, optimizer in zip(models, optimizers, strict=True):
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()

    return step


# --- cross-validation ---


def cross_validation(scope: Scope) -> Case:
    """Puts the same trainings to all: those of 12 strengths on 5 folds, and the last one, on all data."""
    epochs = 1 if scope.quick else EPOCHS
    data = cache(partial(balanced, scope))
    makers: Mapping[str, Callable[..., Contender]] = {
        OURS: partial(plainly_validated, data, epochs, scope, ours=True),
        TORCH: partial(plainly_validated, data, epochs, scope, ours=False),
        STACKED: partial(strength_cv, data, epochs, scope),
    }
    label = f"adamw, {len(STRENGTHS)} strengths x {FOLDS} folds of 64-32-32-10, {epochs} epochs, batches of {BATCH}"
    chosen = {peer: makers[peer] for peer in building.taking_part([OURS, TORCH, STACKED], scope)}
    return Case("stacked", label, chosen, clock="wall", x=len(STRENGTHS) * FOLDS)


def balanced(scope: Scope) -> tuple[Tensor, Tensor]:
    """Makes rows with as many of each class, so that no fold lacks one."""
    return torch.randn(ROWS, 64, device=scope.device), torch.arange(ROWS, device=scope.device) % 10


def strength_cv(data: Any, epochs: int, scope: Scope) -> Contender:
    from regkernels.selection import StrengthCV

    x, y = (part.cpu().numpy() for part in data())
    (module,) = networks(64, 32, deep=True, scope=scope, count=1)
    found = StrengthCV(
        module,
        nn.functional.cross_entropy,
        STRENGTHS,
        cv=FOLDS,
        epochs=epochs,
        batch_size=BATCH,
        random_state=0,
    )

    def fit() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a best strength at the edge of the grid, which is not asked for here
            found.fit(x, y)

    return Contender(fit)


def plainly_validated(data: Any, epochs: int, scope: Scope, *, ours: bool) -> Contender:
    """Makes the loop that one would write; torch's is without L1, which it does not have."""
    from sklearn.model_selection import StratifiedKFold

    x, y = data()
    (module,) = networks(64, 32, deep=True, scope=scope, count=1)
    splits = [list(map(torch.as_tensor, split)) for split in StratifiedKFold(FOLDS).split(x.cpu(), y.cpu())]

    def trained(l1: float, rows: Tensor) -> nn.Module:
        model = copy.deepcopy(module)
        if ours:
            optimizer: torch.optim.Optimizer = regkernels.optim.AdamW(regkernels.param_groups(model, l1=l1))
        else:
            optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        for _ in range(epochs):
            for chosen in rows[torch.randperm(len(rows))].split(BATCH):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
                optimizer.step()
        return model

    def score(model: nn.Module, rows: Tensor) -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(model(x[rows]), y[rows]))

    def run() -> None:
        means = [sum(score(trained(l1, train), held_out) for train, held_out in splits) for l1 in STRENGTHS]
        trained(STRENGTHS[means.index(min(means))], torch.arange(len(x)))

    return Contender(run)


def test_stacked(benchmark: Any, timed: dict[str, Any]) -> None:
    benchmark.pedantic(**timed)
