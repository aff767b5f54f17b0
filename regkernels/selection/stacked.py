"""Trains many models of one architecture together: one forward, one backward and one update for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_leaves

from regkernels.param_groups import param_groups
from regkernels.selection.alike import check_alike
from regkernels.selection.stack import Stack
from regkernels.validation import nonnegative, one_of

Criterion = Callable[..., Tensor]
InDims = int | None | tuple[int | None, ...]


class StackedModels:
    """Trains K models of one architecture at once, each with hyper-parameters of its own: another ``l1``, another fold.

    Their tensors move into stacked memory, so that `torch.func.vmap` computes all K losses with batched kernels, one backward
    pass writes all gradients where the optimizer looks for them, and a step of a regkernels optimizer updates all K models
    in one call. The models stay the user's objects: their parameters are views of that memory and hold, at any time, what has
    been trained. The optimizer is an ordinary one on the parameters of all models, with param groups per model::

        models = [make_model() for l1 in strengths]
        stacked = StackedModels(models)
        optimizer = AdamW(stacked.param_groups([{"l1": l1} for l1 in strengths]), lr=1e-3)
        for x, y in loader:
            stacked.losses(cross_entropy, x, y).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    Args:
        models: modules that differ in the values of their tensors only. ``models[0].forward`` computes for all of them.
        randomness: of dropout and the like, as in `torch.func.vmap`: "different" for each model, "same" for all, or "error".
        chunk_size: how many models to compute at once, to save memory; None: all.

    Attributes:
        models: the same objects. ``state_dict`` and ``load_state_dict`` of each work as ever; so do those of the optimizer.

    What makes one number of all gradients couples the models: ``max_grad_norm`` clips the norm over all of them, and
    ``skip_nonfinite`` leaves the step out for all. `clip_grad_norm_` clips each model by its own norm.
    `regkernels.optim.step_in_backward` sees no gradients here, as backward does not pass through the models' own parameters.

    Raises:
        TypeError, ValueError: for no models, for models that are built differently or share tensors; nothing is moved then.
    """

    def __init__(
        self, models: Sequence[nn.Module], *, randomness: str = "different", chunk_size: int | None = None
    ) -> None:
        one_of("randomness", randomness, ("different", "same", "error"))
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size must be a positive number of models or None, got {chunk_size}")
        self.models = check_alike(models)
        self._randomness, self._chunk_size = randomness, chunk_size
        self._stack = Stack(self.models)

    def __len__(self) -> int:
        """Returns K, the number of models."""
        return len(self.models)

    def __call__(self, *inputs: Any, in_dims: InDims = None) -> Any:
        """Returns what ``forward`` of each model returns, with a first dimension of K in every tensor.

        Args:
            inputs: positional arguments of ``forward``.
            in_dims: None gives the same inputs to all models; 0 gives each model its own, along the first dimension; a
                tuple says it for each input.
        """
        self._stack.prepare()
        dims = _dims_of(in_dims, len(inputs))
        return self._watched(
            self._mapped(self._forward, (0, 0, *dims))(self._stack.params, self._stack.buffers, *inputs)
        )

    def losses(
        self,
        criterion: Criterion,
        inputs: Any,
        targets: Any,
        *,
        weights: Tensor | None = None,
        in_dims: InDims = None,
    ) -> Tensor:
        """Returns the loss of each model, (K,): their sum has for each model the gradients of its own loss.

        Args:
            criterion: called with the outputs and the targets of one model. It returns a number, or a tensor whose first
                dimension is the batch (``reduction="none"``); of the latter the mean is taken.
            inputs: of ``forward``: a tensor or a tuple of positional arguments.
            targets: what ``criterion`` takes as its second argument.
            weights: (K, batch), >= 0: how much each sample counts for each model, 0 for one that another fold is to train
                on. Takes a criterion that does not reduce; the loss is ``sum(weights * loss) / sum(weights)``, and 0 where
                all weights of a model are 0.
            in_dims: as in `__call__`; a tuple has one more entry, for ``targets``.
        """
        inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        if weights is not None and (weights.dim() != 2 or len(weights) != len(self)):
            raise ValueError(
                f"weights must have the shape ({len(self)}, batch), a row for each model; got {tuple(weights.shape)}"
            )
        self._stack.prepare()
        *dims, of_targets = _dims_of(in_dims, len(inputs) + 1)

        def loss(params: Any, buffers: Any, weight: Tensor | None, target: Any, *inputs: Any) -> Tensor:
            values = criterion(self._forward(params, buffers, *inputs), target)
            return _mean(values, weight)

        mapped = self._mapped(loss, (0, 0, None if weights is None else 0, of_targets, *dims))
        return self._watched(mapped(self._stack.params, self._stack.buffers, weights, targets, *inputs))  # type: ignore[no-any-return]

    @torch.no_grad()
    def predict(self, *inputs: Any, in_dims: InDims = None) -> Any:
        """Does what `__call__` does, without gradients and in evaluation mode; modes are as before afterwards."""
        modes = [(module, module.training) for module in self.models[0].modules()]
        self.models[0].eval()
        try:
            return self(*inputs, in_dims=in_dims)
        finally:
            for module, training in modes:
                module.training = training

    def param_groups(
        self, options: Sequence[Mapping[str, Any]], *, regularise: Callable[[str, Tensor], bool] | None = None
    ) -> list[dict[str, Any]]:
        """Makes param groups of all models, from what ``regkernels.param_groups(models[k], **options[k])`` returns.

        Group k has the weights of model k that are penalised; the others follow, in one group where their options agree: a
        step's time on the host grows with the number of groups. Groups made by other means do as well.

        Args:
            options: K dictionaries, such as ``{"l1": 1e-3, "lr": 1e-2}``.
            regularise: which parameters are penalised, by name and tensor; see `regkernels.param_groups`.

        Raises:
            ValueError: for another number of dictionaries.
        """
        options = list(options)
        if len(options) != len(self):
            raise ValueError(f"options must have one dictionary for each of the {len(self)} models, got {len(options)}")
        chosen: dict[str, Any] = {} if regularise is None else {"regularise": regularise}
        penalised, others = [], list[dict[str, Any]]()
        for model, own in zip(self.models, options, strict=True):
            group, rest = param_groups(model, **chosen, **own)
            penalised.append(group)
            same = next((other for other in others if _same_options(other, rest)), None)
            if same is None:
                others.append(rest)
            else:
                same["params"] += rest["params"]
        return penalised + others

    def train(self, mode: bool = True) -> StackedModels:
        """Sets the mode of all models; see `torch.nn.Module.train`."""
        for model in self.models:
            model.train(mode)
        return self

    def eval(self) -> StackedModels:
        """Sets all models to evaluation mode."""
        return self.train(False)

    @torch.no_grad()
    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Scales the gradients of each model in place, so that their norm is at most ``max_norm``.

        As `torch.nn.utils.clip_grad_norm_` does for one model. Returns the norms before, (K,).
        """
        nonnegative("max_norm", max_norm)
        grads = list(self._stack.gradients.values())
        norms = torch.stack([grad.flatten(1).double().square().sum(1) for grad in grads]).sum(0).sqrt()
        factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(factors.to(grad.dtype).view(-1, *[1] * (grad.dim() - 1)))
        return norms

    def zero_grad(self) -> None:
        """Zeroes all gradients in place, as ``optimizer.zero_grad()`` of a regkernels optimizer does."""
        self._stack.zero_gradients()

    def _forward(self, params: Any, buffers: Any, *inputs: Any) -> Any:
        return functional_call(self.models[0], (params, buffers), inputs)

    def _mapped(self, function: Callable[..., Any], dims: tuple[int | None, ...]) -> Callable[..., Any]:
        return vmap(function, in_dims=dims, randomness=self._randomness, chunk_size=self._chunk_size)

    def _watched(self, outputs: Any) -> Any:
        for output in tree_leaves(outputs):
            if isinstance(output, Tensor) and output.requires_grad:
                output.register_hook(self._stack.note_changes)
        return outputs


def _same_options(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    def same(x: Any, y: Any) -> bool:
        return x is y or (isinstance(x, (int, float, str, tuple)) and type(x) is type(y) and x == y)

    return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a.keys() - {"params"})


def _dims_of(in_dims: InDims, count: int) -> tuple[int | None, ...]:
    if not isinstance(in_dims, tuple):
        return (in_dims,) * count
    if len(in_dims) != count:
        raise ValueError(f"in_dims must be None, a number or a tuple of {count}, got {in_dims!r}")
    return in_dims


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    if values.dim() == 0:
        if weight is not None:
            raise ValueError(
                'weights need a criterion that returns a loss for each sample; pass reduction="none" to it'
            )
        return values
    samples = values.flatten(1).mean(1) if values.dim() > 1 else values
    if weight is None:
        return samples.mean()
    if weight.shape != samples.shape:
        raise ValueError(
            f"weights have {len(weight)} samples in each row, the criterion has returned {len(samples)} losses"
        )
    # Where nothing counts the loss is 0, and so is its gradient; 0 / 0 would put NaN into the weights.
    return (weight * samples).sum() / weight.sum().clamp(min=torch.finfo(samples.dtype).tiny)
