"""Finds where a path starts: the smallest strength at which all penalised weights are zero, and a grid below it."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor, nn

from regkernels import validation
from regkernels.selection.coordinates import Coordinates, natural
from regkernels.selection.data import Batches, Data
from regkernels.selection.features import Features, features
from regkernels.selection.groups import Groups
from regkernels.selection.newton import conjugate_gradients, flat_of, parts, second_order
from regkernels.selection.objective import Loss, Objective
from regkernels.selection.smoothness import refuse_kinks
from regkernels.table.grouping import Weighting

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


def lambda_max(
    model: nn.Module,
    loss: Loss,
    data: Data,
    *,
    l1_ratio: float = 1.0,
    penalty: str = "l1",
    dim: int | str = 0,
    size: int = 1,
    weight: Weighting = "sqrt_size",
    positive: bool = False,
    regularise: Callable[[str, Tensor], bool] | None = None,
    sample_weight: Tensor | None = None,
) -> float:
    """Returns the smallest strength at which all penalised weights of a linear model are zero: where a path starts.

    With ``l1_ratio = 1`` that is ``l1``, in units of the loss. The parameters that are not penalised (biases) are fitted with all
    others at zero, until their gradient vanishes; with g the gradient of the penalised weights there,

        l1:        max |g| / l1_ratio                   (least squares: max |X^T r| / (n l1_ratio), r the residual)
        group_l1:  max over groups of ||g_group||_2 / weight_group / l1_ratio

    A constant weight decay on top changes nothing, for its gradient at zero is zero.

    Args:
        model: its output must be linear (affine) in the penalised weights, as that of ``nn.Linear`` is; any loss may follow. Of a
            network with hidden layers, zero weights are a saddle: its path goes from dense to sparse and has no
            such start. Copied, not changed; the copy computes in float64.
        loss: ``loss(model_output, target)``, convex in the output; the mean over the rows.
        data: ``(inputs, targets)``, or an iterable of such batches (a list, a ``DataLoader``), weighted by their rows.
        l1_ratio: share of the strength that is L1, in (0, 1], as in scikit-learn's ElasticNet; the rest is weight decay.
        penalty: "l1" or "group_l1".
        dim, size, weight: the groups of "group_l1", as in its param-group keys.
        positive: the weights must not become negative: of "l1" then max(-g), for a positive gradient holds a weight at zero anyway.
        regularise: which parameters are penalised, by name and tensor, as in `regkernels.param_groups`.
        sample_weight: how much each row counts, shape (rows,), >= 0; with ``data`` a pair of tensors and a loss that does not reduce
            (``reduction="none"``). Rows of weight 0 are not looked at.

    Returns:
        A number >= 0; exactly 0 where the unpenalised parameters alone fit all targets (all labels equal).

    Raises:
        ValueError, TypeError: for data that is empty or does not fit, a model that is not linear or has no penalised parameter, and
            other arguments outside of what is allowed.
        RuntimeError: where the unpenalised parameters cannot be fitted.

    Source: Friedman, Hastie and Tibshirani, Regularization Paths for Generalized Linear Models via Coordinate Descent (2010), 2.5.
    """
    ratio = checked_ratio(l1_ratio)
    validation.one_of("penalty", penalty, ("l1", "group_l1"))
    groups = Groups(dim, size, weight)
    with undisturbed_random_state():
        batches = Batches("data", data, torch.float64, sample_weight)
        objective = Objective(model, loss, batches, regularise, torch.float64)
        null = fit_null(objective)
    return starting_strength(null, groups if penalty == "group_l1" else None, positive=positive) / ratio


def lambda_grid(maximum: float, n_lambdas: int = 100, lambda_min_ratio: float = 1e-3) -> Tensor:
    """Returns ``n_lambdas`` strengths from ``maximum`` down to ``lambda_min_ratio * maximum``, evenly spaced in their logarithm.

    Args:
        maximum: the first one, >= 0, as `lambda_max` gives it; 0 gives zeros.
        n_lambdas: how many, >= 1.
        lambda_min_ratio: the last one, as a share of the first; in (0, 1).

    Returns:
        float64, shape (n_lambdas,), decreasing: what scikit-learn's ``LassoCV(alphas=n_lambdas, eps=lambda_min_ratio)`` tries.

    Raises:
        ValueError, TypeError: for a number outside of what is allowed.
    """
    start = validation.nonnegative("maximum", maximum)
    if isinstance(n_lambdas, bool) or not isinstance(n_lambdas, numbers.Integral) or n_lambdas < 1:
        raise ValueError(f"n_lambdas must be a whole number >= 1, got {n_lambdas!r}")
    if not 0 < validation.finite("lambda_min_ratio", lambda_min_ratio) < 1:
        raise ValueError(f"lambda_min_ratio must be in (0, 1), got {lambda_min_ratio}")
    if start == 0:
        return torch.zeros(int(n_lambdas), dtype=torch.float64)
    return torch.from_numpy(numpy.geomspace(start, start * lambda_min_ratio, int(n_lambdas)))


def checked_ratio(l1_ratio: Any) -> float:
    """Checks a share in (0, 1]: without L1 no weight is ever exactly zero."""
    ratio = validation.finite("l1_ratio", l1_ratio)
    if not 0 < ratio <= 1:
        raise ValueError(
            f"l1_ratio must be in (0, 1], got {l1_ratio}: without L1 no strength makes weights exactly zero"
        )
    return ratio


def largest(gradients: list[Tensor], groups: Groups | None) -> float:
    """Returns the dual norm of the penalty: the largest element, or the largest weighted norm of a group."""
    if groups is None:
        sizes = [gradient.abs().flatten() for gradient in gradients]
    else:
        sizes = [groups.norms(gradient) / groups.weight(gradient) for gradient in gradients]
    return max((s.max().item() for s in sizes if s.numel()), default=0.0)


def starting_strength(null: Null, groups: Groups | None, *, positive: bool) -> float:
    """Returns the smallest strength that holds all penalised weights at zero."""
    if null.exact:
        return 0.0
    held = [(-g).clamp(min=0) for g in null.gradients] if positive and groups is None else null.gradients
    return largest(held, groups)


def undisturbed_random_state() -> Any:
    """Leaves the random number generators, when it ends, as it found them, whatever shuffles or drops out within."""
    return torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_initialized() else [])


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
    left = largest(gradients, None)
    while left > tiny:
        before = [param.detach().clone() for param in params]
        moves = parts(conjugate_gradients(product, -flat_of(gradients), 0.0), params)
        with torch.no_grad():
            for param, move in zip(params, moves, strict=True):
                param.add_(move)
        gradients, product = second_order(objective, params)
        if not largest(gradients, None) < left:
            with torch.no_grad():
                for param, old in zip(params, before, strict=True):
                    param.copy_(old)
            break
        left = largest(gradients, None)
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
