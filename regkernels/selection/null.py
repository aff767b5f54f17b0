"""Fits the model whose penalised weights are all zero, from which the start of a path is read off."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from regkernels.selection.coordinates import Coordinates, natural
from regkernels.selection.features import Features, features
from regkernels.selection.groups import Groups
from regkernels.selection.newton import conjugate_gradients, flat_of, norm_inf, parts, second_order
from regkernels.selection.objective import Objective
from regkernels.selection.smoothness import refuse_kinks

_STATIONARY = 1e-9
"""How small the gradient of the unpenalised parameters must become, against what the outputs' gradients could add up to."""

_ROUNDING, _SEPARATED = 1e-13, 1e-8
"""How small the residual of an exact fit is, as a share of the one before: by rounding, and of a loss whose minimum is at infinity."""


class Null(NamedTuple):
    """Describes the model whose penalised weights are zero.

    ``gradients``: of the penalised weights, features centred. ``exact``: it fits all targets. ``pull``: the largest gradient in ``coordinates``.
    """

    gradients: list[Tensor]
    exact: bool
    coordinates: Coordinates
    pull: float
    features: Features | None


def fit_null(objective: Objective, groups: Groups | None = None) -> Null:
    """Sets the penalised weights of the objective's model to zero and fits the others. float64 is asked for, not checked."""
    refuse_networks(objective)
    found = features(objective) if groups is None else None
    coordinates = natural(objective, groups) if found is None else _coordinates(found)
    objective.zero_penalised()
    refuse_kinks(objective)
    before = _residual(objective)
    if objective.unpenalised:
        _fit(objective, before)
    gradient = flat_of(objective.gradient()[1])
    coordinates.rounding = max(coordinates.rounding, _rounding(objective))
    centred, pulls = coordinates.centred(gradient), coordinates.pull(gradient)
    if found is not None:
        # Their difference to the mean is known: here the rounding of a large mean does not count.
        pulls = torch.cat([found.columns.T @ _by_output(objective), pulls[len(found.inverse) :]])
        sizes = torch.cat([found.inverse, torch.ones_like(found.shift[:, 0])])
        centred = torch.where(sizes == 0, 0.0, pulls / sizes)
    gradients = parts(centred, objective.params)[: len(objective.penalised)]
    left = _residual(objective)
    exact = left <= _ROUNDING * before or (left <= _SEPARATED * before and _equal_targets(objective))
    return Null(list(gradients), exact, coordinates, pulls.abs().max().item(), found)


def _by_output(objective: Objective) -> Tensor:
    """Returns the gradient by the outputs, flat, of data in one batch."""
    inputs, targets, _ = next(iter(objective.batches))
    output = objective.model(inputs).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(objective.loss(output, targets), output)
    return gradient.flatten()


def _rounding(objective: Objective) -> float:
    """Returns how much larger than the gradient by the outputs it is what their own rounding is multiplied by."""
    images, gradients = 0.0, 0.0
    for inputs, targets, share in objective.batches:
        with torch.no_grad():
            output = objective.model(inputs)
        output.requires_grad_()
        (gradient,) = torch.autograd.grad(objective.loss(output, targets) * share, output, create_graph=True)
        if gradient.requires_grad:
            (image,) = torch.autograd.grad(gradient, output, output.detach())
            images += image.square().sum().item()
        gradients += gradient.square().sum().item()
    return math.sqrt(images / gradients) if gradients else 1.0


def _coordinates(found: Features) -> Coordinates:
    return Coordinates(found.inverse, torch.ones_like(found.shift[:, 0]), found.shift, found.rounding)


def _equal_targets(objective: Objective) -> bool:
    """Tells whether all rows have the same target: a loss such as the logistic one then becomes small, never zero."""
    first = next(iter(objective.batches))[1][:1]
    return all(bool((targets == first).all()) for _, targets, _ in objective.batches)


def _fit(objective: Objective, residual: float) -> None:
    """Takes L-BFGS from wherever the parameters are, then Newton steps, for where the loss itself is too flat to be compared."""
    params = objective.unpenalised
    if not math.isfinite(objective.value()):
        raise RuntimeError("the loss is not finite where all penalised weights are zero; check the inputs and the loss")
    tiny = 1e-14 * residual
    optimizer = torch.optim.LBFGS(
        params, max_iter=200, tolerance_grad=tiny, tolerance_change=0.0, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        value, gradients = objective.gradient(params)
        for param, gradient in zip(params, gradients, strict=True):
            param.grad = gradient
        return value

    optimizer.step(closure)
    left = _polish(objective, tiny)
    if not left <= _STATIONARY * residual:
        raise RuntimeError(
            f"the unpenalised parameters could not be fitted: their gradient is still {left:.3g} after L-BFGS and Newton steps. "
            "Standardise the inputs, or check that the loss is convex in the model's output"
        )


def _polish(objective: Objective, tiny: float) -> float:
    """Takes Newton steps for as long as the gradient of the unpenalised parameters becomes smaller; returns how large it is in the end."""
    params = objective.unpenalised
    gradients, product = second_order(objective, params)
    left = norm_inf(gradients)
    while left > tiny:
        before = [param.detach().clone() for param in params]
        moves = parts(conjugate_gradients(product, -flat_of(gradients), 0.0), params)
        with torch.no_grad():
            for param, move in zip(params, moves, strict=True):
                param.add_(move)
        gradients, product = second_order(objective, params)
        if not norm_inf(gradients) < left:
            with torch.no_grad():
                for param, old in zip(params, before, strict=True):
                    param.copy_(old)
            break
        left = norm_inf(gradients)
    return left


def _residual(objective: Objective) -> float:
    """Sums over the rows |d loss / d output|: 0 where the model fits every target."""
    total = 0.0
    for inputs, targets, share in objective.batches:
        with torch.no_grad():
            output = objective.model(inputs)
        output.requires_grad_()
        (gradient,) = torch.autograd.grad(objective.loss(output, targets) * share, output)
        total += gradient.abs().sum().item()
    return total


def refuse_networks(objective: Objective) -> None:
    """Raises where the output is not affine in the penalised weights: equal steps along a line change it equally then."""
    inputs, _, _ = next(iter(objective.batches))
    before = [param.detach().clone() for param in objective.penalised]
    outputs = []
    with torch.no_grad():
        for step in range(3):
            for param in objective.penalised:
                # Not constant: softmax and normalisations do not see a constant.
                param.copy_(
                    step
                    * torch.linspace(-1, 2, param.numel(), dtype=param.dtype, device=param.device).view_as(param).cos()
                )
            outputs.append(objective.model(inputs))
        for param, values in zip(objective.penalised, before, strict=True):
            param.copy_(values)
    if not isinstance(outputs[0], Tensor):
        raise TypeError(f"the model's output must be a tensor, got {type(outputs[0]).__name__}")
    first, second = outputs[1] - outputs[0], outputs[2] - outputs[1]
    scale = max(output.abs().max().item() for output in outputs)
    if not (second - first).abs().max().item() <= 1e4 * torch.finfo(first.dtype).eps * scale or not math.isfinite(
        scale
    ):
        raise ValueError(
            "model is not linear in its penalised weights. With hidden layers, all weights zero is a saddle, where their gradients "
            "vanish, and a path cannot start there: train a dense network and go from small to large strengths, with "
            'regularization_path(..., lambdas=[...], direction="increasing"). A sigmoid or softmax at the end belongs into the '
            "loss (binary_cross_entropy_with_logits, cross_entropy); in training mode, dropout is not linear either: model.eval()"
        )
