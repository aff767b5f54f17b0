"""Makes the module that all candidates are copies of, and tries whether copies of it can be trained together."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from regkernels.selection.fold_training import Data
from regkernels.selection.losses import check_mean
from regkernels.selection.stacked import Criterion, StackedModels
from regkernels.selection.targets import Targets

_ROWS = 4  # of a trial: more than the one that batch normalisation refuses
_ROWS_OF_LOSS = 256  # of the trial of the loss, spread over the data: some may count nothing


class Prototype(NamedTuple):
    """Holds what candidates begin with."""

    module: nn.Module
    features: Tensor  # on the device of the module, in its dtype or, where it takes numbers of things, as int64
    targets: Tensor
    per_sample: bool  # whether the loss returns a value per sample, not their mean

    def data(self, loss: Criterion, weights: Any) -> Data:
        """Returns all rows with their weights.

        Raises:
            ValueError: for weights of a loss that has taken the mean already.
        """
        if weights is None:
            return Data(loss, self.features, self.targets, None)
        if not self.per_sample:
            raise ValueError(
                'sample_weight needs a loss that returns a value for each sample: pass reduction="none" to it, as in '
                'torch.nn.CrossEntropyLoss(reduction="none")'
            )
        first = next(self.module.parameters())
        own = torch.as_tensor(weights).to(first.device, first.dtype)
        return Data(loss, self.features, self.targets, own)


def new_module(given: Any) -> nn.Module:
    """Returns a copy of a module, or what a function makes.

    Raises:
        TypeError: for anything else.
    """
    made = copy.deepcopy(given) if isinstance(given, nn.Module) else given() if callable(given) else given
    if not isinstance(made, nn.Module):
        says = f"a {type(made).__name__} from it" if made is not given else repr(given)
        raise TypeError(f"module must be a torch.nn.Module, or a function without arguments that makes one; got {says}")
    return made


def prepared(
    module: nn.Module, loss: Criterion, kind: Targets, features: Any, targets: Tensor, count: int
) -> Prototype:
    """Returns a module whose lazy layers have shapes, with data as it takes them.

    Args:
        module: changed where layers are lazy.
        loss, kind: of which the targets are.
        features, targets: of all rows.
        count: of classes; 0 for numbers.

    Raises:
        ValueError: for a module without parameters, outputs that do not go with the targets, and a loss that is neither a mean over
            the samples nor a value for each.
    """
    first = next((param for param in module.parameters() if param.requires_grad), None)
    if first is None:
        raise ValueError(
            f"module has no trainable parameter (requires_grad=True), got a {type(module).__name__}: there is nothing to penalise"
        )
    rows = torch.linspace(0, len(features) - 1, max(_ROWS, min(_ROWS_OF_LOSS, len(features)))).round().long()
    x = _taken(module.eval(), torch.tensor(features).to(first.device), first.dtype, rows)
    with torch.no_grad():
        outputs = module(x[rows])
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"module must return a tensor, got a {type(outputs).__name__}: wrap it in a module that returns the outputs that the loss takes"
        )
    if outputs.dim() == 0 or len(outputs) != len(rows):
        raise ValueError(
            f"module must return a row for each of the {len(rows)} samples that it was given, got the shape {tuple(outputs.shape)}"
        )
    y = kind.shaped(targets, outputs, count)
    y = y.to(first.device, outputs.dtype if y.is_floating_point() else y.dtype)
    return Prototype(module.train(), x, y, _returns_samples(loss, outputs, y[rows]))


@torch.no_grad()
def _taken(module: nn.Module, features: Tensor, dtype: torch.dtype, rows: Tensor) -> Tensor:
    """Returns the features in the dtype of the module or, of whole numbers that it cannot take so, as int64: places of an embedding."""
    mistake: Exception | None = None
    for each in (dtype,) if features.is_floating_point() else (dtype, torch.int64):
        try:
            module(features[rows].to(each))
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            # Of a module that takes places of something the first mistake is that these are no whole numbers.
            mistake = error if mistake is None or "indices" in str(mistake) else mistake
        else:
            return features.to(each)
    raise ValueError(
        f"module cannot compute rows of X, of the shape {tuple(features.shape[1:])} each: {str(mistake).splitlines()[0]}"
    ) from mistake


def _returns_samples(loss: Criterion, outputs: Tensor, targets: Tensor) -> bool:
    values = loss(outputs, targets)
    if not isinstance(values, Tensor) or (values.dim() > 0 and len(values) != len(outputs)):
        raise ValueError(f"loss must return a tensor: the mean over the samples, or a value for each, got {values!r}")
    if values.dim() > 0:
        return True
    check_mean(loss, outputs, targets)
    return False


def check_stackable(prototype: Prototype, loss: Criterion, optimizer_of: Callable[[StackedModels], object]) -> None:
    """Trains two copies together for a step that is not taken.

    Raises:
        ValueError: for buffers that cannot be stacked, and what `torch.func.vmap` cannot compute.
    """
    module, (x, y) = prototype.module, prototype[1:3]
    rows = torch.arange(_ROWS) % len(x)
    _check_buffers(module, x[rows])
    stacked = StackedModels([copy.deepcopy(module) for _ in range(2)])
    optimizer_of(stacked)
    both = rows.expand(2, -1)
    try:
        stacked.losses(loss, x[both], y[both], in_dims=0).sum().backward()
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise ValueError(
            "module and loss cannot be computed for several models at once, as torch.func.vmap does it: no Python branch on values "
            f"of tensors, no .item(), buffers changed in place ({str(error).splitlines()[0]}). scikit-learn's GridSearchCV over a "
            "skorch network trains one after the other"
        ) from error


def _check_buffers(module: nn.Module, inputs: Tensor) -> None:
    """Raises for buffers that have no stacked memory, or leave it when ``forward`` puts another tensor in their place."""
    tried = copy.deepcopy(module)
    before = dict(tried.named_buffers())
    for name, buffer in before.items():
        if buffer.layout != torch.strided:
            raise ValueError(
                f"module has the buffer {name!r} of the layout {buffer.layout}, which cannot be stacked: make it dense, to_dense()"
            )
    with torch.no_grad():
        tried(inputs)
    after = dict(tried.named_buffers())
    replaced = [name for name, buffer in before.items() if after.get(name) is not buffer]
    if replaced:
        raise ValueError(
            f"module replaces its buffer {replaced[0]!r} in forward, so that it cannot be stacked: change it in place, as copy_ does"
        )
