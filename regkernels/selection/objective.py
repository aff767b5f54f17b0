"""Computes the smooth part of the problem: a model's mean loss over data, and its gradient."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from regkernels.param_groups import param_groups
from regkernels.selection.data import Batches
from regkernels.selection.losses import check_function, check_mean, is_cross_entropy
from regkernels.selection.plain_models import check_model

Loss = Callable[[Any, Tensor], Tensor]


class Objective:
    """Computes ``f(w)``, the mean of ``loss(model(inputs), targets)`` over all rows, for a copy of the model.

    Args:
        model: copied, not changed; converted to ``dtype`` where that is given.
        loss: the mean over the rows of a batch, as a tensor of one element.
        batches: weighted by their numbers of rows.
        regularise: which parameters are penalised, as in `regkernels.param_groups`; None: those with two dimensions or more.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        batches: Batches,
        regularise: Callable[[str, Tensor], bool] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_model(model)
        check_function(loss)
        self.model: nn.Module = copy.deepcopy(model)
        self.loss: Loss = copy.deepcopy(loss) if isinstance(loss, nn.Module) else loss
        if dtype is not None:
            self.model.to(dtype)
            if isinstance(self.loss, nn.Module):
                self.loss.to(dtype)
        self._held_out_loss = self.loss
        if batches.weights is not None:
            self._held_out_loss = partial(_mean, self.loss)
            self.loss = partial(_weighted, self.loss, batches.weights)
        self.batches = batches
        chosen, others = param_groups(self.model, regularise=regularise)
        self.penalised: list[nn.Parameter] = chosen["params"]
        self.unpenalised: list[nn.Parameter] = others["params"]
        if not self.penalised:
            raise ValueError(
                "model has no penalised parameter: print(regkernels.param_groups(model)) says why; name them with "
                "regularise=lambda name, p: ..."
            )
        names = {id(param): name for name, param in self.model.named_parameters()}
        self.penalised_names: tuple[str, ...] = tuple(names[id(param)] for param in self.penalised)
        for param in self.params:
            if param.is_complex():
                raise TypeError(f"model has a {param.dtype} parameter; penalties are defined for real ones only")
        self.check(self.batches, "data")

    @property
    def params(self) -> list[nn.Parameter]:
        """Returns the trainable parameters of the copy: first those that are penalised."""
        return [*self.penalised, *self.unpenalised]

    def zero_penalised(self) -> None:
        """Sets the penalised weights of the copy to 0."""
        with torch.no_grad():
            for param in self.penalised:
                param.zero_()

    @contextlib.contextmanager
    def at_zero(self) -> Iterator[None]:
        """Sets all trainable parameters to 0, and afterwards to what they were."""
        before = [param.detach().clone() for param in self.params]
        with torch.no_grad():
            for param in self.params:
                param.zero_()
        try:
            yield
        finally:
            with torch.no_grad():
                for param, old in zip(self.params, before, strict=True):
                    param.copy_(old)

    @torch.no_grad()
    def value(self) -> float:
        """Returns ``f(w)``."""
        return float(sum(share * self.loss(self.model(x), y).item() for x, y, share in self.batches))

    def gradient(self, params: list[nn.Parameter] | None = None, *, graph: bool = False) -> tuple[float, list[Tensor]]:
        """Returns ``f(w)`` and its gradient by ``params``; with ``graph`` it can be differentiated once more."""
        params = self.params if params is None else params
        value, total = 0.0, [torch.zeros_like(param) for param in params]
        for inputs, targets, share in self.batches:
            loss = self.loss(self.model(inputs), targets) * share
            value += loss.item()
            gradients = torch.autograd.grad(loss, params, create_graph=graph, allow_unused=True)
            total = [t if g is None else t + g for t, g in zip(total, gradients, strict=True)]
        return value, total

    def score(self, batches: Batches, score: Callable[[Any, Tensor], float | Tensor] | None) -> float:
        """Returns the mean over other data, with ``model.eval()``; without ``score``: of minus the loss."""
        with torch.no_grad(), self.evaluating():
            total = sum(share * _number((score or self._held_out_loss)(self.model(x), y)) for x, y, share in batches)
        return total if score is not None else -total

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Sets ``model.eval()``, and afterwards each module's own mode again."""
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True

    @torch.no_grad()
    def check(self, batches: Batches, name: str) -> None:
        """Raises where model, loss and ``batches`` do not go together, found out with the first batch."""
        inputs, targets, _ = next(iter(batches))
        try:
            output = self.model(inputs)
            _check_shapes(self.loss, output, targets)
            loss = (self.loss if batches is self.batches else self._held_out_loss)(output, targets)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            whole = isinstance(inputs, Tensor) and not (inputs.is_floating_point() or inputs.is_complex())
            hint = f" (inputs are {inputs.dtype}: pass inputs.to({self.params[0].dtype}))" if whole else ""
            raise ValueError(f"model, loss and {name} do not go together: {error}{hint}") from error
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise ValueError(f'loss must return one number, the mean over the rows (reduction="mean"), got {got}')
        if (
            self.batches.weights is None
            and isinstance(output, Tensor)
            and output.dim() > 0
            and len(output) == len(targets)
        ):
            check_mean(self.loss, output, targets)


def _number(score: Any) -> float:
    if isinstance(score, Tensor) and score.numel() != 1:
        raise ValueError(f"score must return one number, the mean over the rows, got shape {tuple(score.shape)}")
    return float(score)


def _check_shapes(loss: Loss, output: Any, targets: Tensor) -> None:
    if is_cross_entropy(loss) and isinstance(output, Tensor) and output.dim() > 1 and targets.is_floating_point():
        if output.shape[1] == 1:
            raise ValueError(
                "cross_entropy takes an output for each class, and the model has one: take binary_cross_entropy_with_logits, or give the "
                "model two"
            )
        if output.shape != targets.shape:
            raise ValueError(
                f"cross_entropy takes the numbers of classes as whole numbers, and the targets are {targets.dtype}: pass y.long()"
            )
    if isinstance(output, Tensor) and targets.is_floating_point() and output.shape != targets.shape:
        raise ValueError(
            f"the model's output has shape {tuple(output.shape)} and the targets {tuple(targets.shape)}, which a loss would "
            "broadcast; reshape the targets, for nn.Linear(n, 1) with y[:, None]"
        )


def _weighted(loss: Loss, weights: Tensor, output: Any, targets: Tensor) -> Tensor:
    """Returns the weighted mean of what the loss is of each row."""
    values = loss(output, targets)
    if not isinstance(values, Tensor) or values.dim() == 0 or len(values) != len(targets):
        raise ValueError('sample_weight needs a loss that returns a loss for each row; pass reduction="none" to it')
    rows = values.reshape(len(targets), -1).mean(1)
    return (weights.to(rows) * rows).sum() / weights.sum()


def _mean(loss: Loss, output: Any, targets: Tensor) -> Tensor:
    """Returns the mean of what the loss is of each row: of data that no weights belong to."""
    return loss(output, targets).mean()
