"""Says how networks are trained, and trains those of a cross-validation and the one that is fitted to all data."""

from __future__ import annotations

import copy
import math
import numbers
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regkernels.selection.belonging import check_belong, check_known, keys_known_to
from regkernels.selection.fold_rows import FoldRows
from regkernels.selection.fold_training import Best, Data, Training, trained
from regkernels.selection.grid import Grid
from regkernels.selection.progress import epochs_shown
from regkernels.selection.prototype import Prototype
from regkernels.selection.stacked import StackedModels
from regkernels.validation import nonnegative


@dataclass(frozen=True)
class Recipe:
    """Holds the arguments of `StrengthCV` that say how networks are trained.

    Raises:
        TypeError, ValueError: for arguments that are not allowed.
    """

    optimizer: Callable[..., Any]
    lr: float
    epochs: int
    batch_size: int | None
    patience: int | None
    options: Mapping[str, Any]
    verbose: bool

    def __post_init__(self) -> None:
        nonnegative("lr", self.lr)
        for name, optional in (("epochs", False), ("batch_size", True), ("patience", True)):
            value = getattr(self, name)
            if value is None and optional:
                continue
            if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
                raise ValueError(f"{name} must be a whole number >= 1{' or None' if optional else ''}, got {value!r}")
        if not callable(self.optimizer) or isinstance(self.optimizer, torch.optim.Optimizer):
            made = isinstance(self.optimizer, torch.optim.Optimizer)
            got = f"a {type(self.optimizer).__name__} that is made already" if made else repr(self.optimizer)
            raise TypeError(
                f"optimizer must be called with param groups and lr, got {got}: pass a class, such as regkernels.optim.AdamW, or "
                "functools.partial of one"
            )
        if not isinstance(self.options, Mapping):
            raise TypeError(f"options must be a dictionary of arguments of param_groups, got {self.options!r}")
        if "lr" in self.options:
            raise ValueError(
                f"options have lr={self.options['lr']!r}, which is an argument by itself: pass lr= for all networks"
            )

    def optimizer_of(
        self, stacked: StackedModels, candidates: Sequence[Mapping[str, float]], *, again: bool = False
    ) -> torch.optim.Optimizer:
        """Makes the optimizer of all models, each with its candidate's strengths.

        Args:
            stacked, candidates: as many.
            again: leaves out what it has warned of before.

        Raises:
            TypeError, ValueError: for what makes none, and for a key that it does not know.
        """
        for key in candidates[0]:
            if key in self.options:
                raise ValueError(f"options have {key!r}, which is the key that strengths are tried of: leave it out")
        check_belong(self.options, candidates[0].keys(), "options have")
        with warnings.catch_warnings():
            if again:
                warnings.simplefilter("ignore")
            optimizer = self.optimizer(
                stacked.param_groups([{**self.options, **own} for own in candidates]), lr=self.lr
            )
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"optimizer must make an optimizer of param groups and lr, got a {type(optimizer).__name__} from it; "
                "pass a class, such as regkernels.optim.AdamW"
            )
        known = keys_known_to(optimizer, candidates[0])
        check_known(self.options, {*known, "embeddings", "regularise"}, "options: ")
        return optimizer

    def cross_validated(
        self, prototype: Prototype, data: Data, grid: Grid, splits: Sequence[tuple[Tensor, Tensor]], seed: int
    ) -> Best:
        """Trains a copy of the module for each candidate and fold."""
        candidates = [grid.options(index) for index in range(len(grid)) for _ in splits]
        stacked = StackedModels([copy.deepcopy(prototype.module) for _ in candidates])
        optimizer = self.optimizer_of(stacked, candidates, again=True)
        penalised = [group["params"] for group in optimizer.param_groups[: len(candidates)]]

        def nonzeros() -> Tensor:
            counts = [sum((weight.detach() != 0).sum() for weight in own) for own in penalised]
            return torch.tensor([int(count) for count in counts]).view(len(grid), len(splits))

        rows = FoldRows([train for train, _ in splits], seed)
        training = Training(stacked, optimizer, data, rows, len(splits), self.batch_size)
        what = f"{len(grid)} strengths x {len(splits)} folds"
        with epochs_shown(self.verbose, what, self.epochs) as show:
            return trained(training, [held_out for _, held_out in splits], nonzeros, self.epochs, self.patience, show)

    def refitted(
        self, prototype: Prototype, data: Data, options: Mapping[str, float], epochs: int, seed: int
    ) -> nn.Module:
        """Trains a copy of the module on all rows, for one candidate; returned in evaluation mode.

        Raises:
            ValueError: for weights that are not finite in the end.
        """
        module = copy.deepcopy(prototype.module)
        stacked = StackedModels([module])
        rows = FoldRows([torch.arange(len(data.features))], seed)
        training = Training(stacked, self.optimizer_of(stacked, [options], again=True), data, rows, 1, self.batch_size)
        with epochs_shown(self.verbose, "all data", epochs) as show:
            for _ in range(epochs):
                training.epoch()
                show()
        if not all(math.isfinite(float(param.detach().double().sum())) for param in module.parameters()):
            raise ValueError(
                f"the fit to all data has diverged, with lr={self.lr}: pass a smaller lr, or scale the features"
            )
        module.zero_grad(set_to_none=True)
        return module.eval()
