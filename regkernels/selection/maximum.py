"""Finds where a path starts: the smallest strength at which all penalised weights are zero, and a grid below it."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from regkernels import validation
from regkernels.selection.data import Batches, Data
from regkernels.selection.groups import Groups
from regkernels.selection.null import Null, fit_null
from regkernels.selection.objective import Loss, Objective
from regkernels.table.grouping import Weighting


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
