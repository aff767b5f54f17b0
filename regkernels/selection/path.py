"""Solves a problem for a sequence of strengths, each started from the one before: the path."""

from __future__ import annotations

import inspect
import math
import numbers
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from regkernels import validation as checks
from regkernels.param_groups import param_groups
from regkernels.selection.coordinates import Coordinates
from regkernels.selection.data import Batches, Data
from regkernels.selection.direct import DirectLasso
from regkernels.selection.groups import Groups
from regkernels.selection.maximum import lambda_grid, starting_strength, undisturbed_random_state
from regkernels.selection.newton import norm_inf
from regkernels.selection.null import Null, fit_null
from regkernels.selection.objective import Loss, Objective
from regkernels.selection.penalty import LIKE_L1_AT_ZERO, Penalty
from regkernels.selection.progress import shown
from regkernels.selection.result import Points, RegularizationPath
from regkernels.selection.solver import ProximalNewton, Solution
from regkernels.selection.training import MakeOptimizer, Training

Score = Callable[[Any, Tensor], float | Tensor]


def regularization_path(
    model: nn.Module | Callable[[], nn.Module],
    loss: Loss,
    data: Data,
    lambdas: Sequence[float] | Tensor | None = None,
    *,
    n_lambdas: int = 100,
    lambda_min_ratio: float = 1e-3,
    direction: str = "decreasing",
    key: str = "l1",
    l1_ratio: float = 1.0,
    weight_decay: float = 0.0,
    regularise: Callable[[str, Tensor], bool] | None = None,
    optimizer: MakeOptimizer | None = None,
    tol: float | None = None,
    max_steps: int = 1000,
    validation: Data | None = None,
    score: Score | None = None,
    sample_weight: Tensor | None = None,
    progress: bool | None = None,
    **options: Any,
) -> RegularizationPath:
    """Solves a problem for many strengths of its penalty, each started from the one before (warm starts).

    For each lambda, minimises

        loss + lambda * (l1_ratio * P(w) + (1 - l1_ratio) / 2 * sum w**2) + weight_decay / 2 * sum w**2

    where P is what the param-group key ``key`` stands for: ``sum |w|`` for "l1", so that ``l1_ratio`` and lambda are scikit-learn's
    ``l1_ratio`` and ``alpha``. Biases and other parameters that ``regularise`` leaves out have no penalty.

    Convex problems (a model whose output is linear in the weights) go from large to small strengths, from all-zero weights on.
    For networks zero weights are a saddle: train a dense one and go ``direction="increasing"``.

    Args:
        model: a module, or a function that makes one. Copied, not changed; its dtype is computed in (float64 for many digits).
        loss: ``loss(model_output, target)``, the mean over the rows.
        data: ``(inputs, targets)``, or an iterable of such batches (a list, a ``DataLoader``), weighted by their rows.
        lambdas: the strengths, >= 0, in the order that ``direction`` says. None: `lambda_grid` from
            `lambda_max` on, for decreasing paths with "l1", "group_l1", "mcp" or "scad".
        n_lambdas, lambda_min_ratio: of that grid.
        direction: "decreasing" from zero weights, or "increasing" from the model's own.
        key: the penalty, a key of regkernels' param groups: "l1", "group_l1", "mcp", ...
        l1_ratio: in (0, 1].
        weight_decay: >= 0, with the factor 1/2, for all strengths alike.
        regularise: which parameters are penalised, by name and tensor, as in `regkernels.param_groups`.
        optimizer: a function of param groups that returns an optimizer, for example ``lambda groups: regkernels.optim.Adam(groups,
            lr=1e-3)``; made anew for each strength. Needed for mini-batches and large networks. None: proximal gradient steps
            over all of the data, with Newton steps on the weights that are not zero.
        tol: a point has converged when 0 is within ``tol`` of the subdifferential of the objective, for every weight, as a share of the
            largest gradient at zero weights, both in units of the features (of other paths than decreasing ones with "l1" or "group_l1":
            as a share of the largest strength). None: 1e-10 in float64, else 1e-5, or what rounding leaves. ``math.inf``: every point counts as converged, for a fixed number of steps.
        max_steps: for each strength, of the solver or of ``optimizer``.
        validation: ``(inputs, targets)`` or batches, for ``score``.
        score: ``score(model_output, target)``, larger is better, a mean over the rows; evaluated with ``model.eval()``. None: minus ``loss``.
        sample_weight: how much each row counts, shape (rows,), >= 0; with ``data`` a pair of tensors and a loss that does not reduce
            (``reduction="none"``). Rows of weight 0 are not looked at.
        progress: True or False; None shows a bar on a terminal, for paths of more than two seconds. It takes rich.
        options: further keys of the penalised param group: ``group_dim``, ``mcp_gamma``, ``positive``; ``l1_weights``, a list of
            tensors or a dict by parameter name, makes the path of an adaptive lasso (give ``lambdas``).

    Returns:
        A `RegularizationPath`. The random number generators are as before.

    Warns:
        RuntimeWarning: for strengths at which the tolerance was not reached, and where all weights are zero because the unpenalised
            parameters alone fit all targets (all labels equal).

    Raises:
        ValueError, TypeError: for data that is empty or does not fit, strengths that are negative, not finite or not in order, a model without
            penalised parameters, a decreasing path of a network, and other arguments outside of what is allowed.
        RuntimeError: for a loss that becomes NaN or infinite.
    """
    if not isinstance(model, nn.Module):
        if not callable(model):
            raise TypeError(
                f"model must be a torch.nn.Module or a function that makes one, got a {type(model).__name__}"
            )
        model = model()
    checks.one_of("direction", direction, ("decreasing", "increasing"))
    if "lr" in options:
        raise ValueError(
            f"lr={options['lr']!r} is of the optimizer: pass optimizer=lambda groups: regkernels.optim.Adam(groups, lr=...)"
        )
    if score is not None and not callable(score):
        raise TypeError(
            f"score must be a function of the model's output and the targets, larger is better, got {score!r}"
        )
    penalty = Penalty(key, l1_ratio, weight_decay, options, inspect.signature(regularization_path).parameters)
    if optimizer is not None and (not callable(optimizer) or isinstance(optimizer, torch.optim.Optimizer)):
        raise TypeError(f"optimizer must be a function of param groups, got a {type(optimizer).__name__}")
    if isinstance(max_steps, bool) or not isinstance(max_steps, numbers.Integral) or max_steps < 1:
        raise ValueError(f"max_steps must be a whole number >= 1, got {max_steps!r}")
    if score is not None and validation is None:
        raise ValueError("score needs data that is not trained on: pass validation=(inputs, targets)")
    strengths = None if lambdas is None else _checked_lambdas(lambdas, direction)
    if strengths is None and (direction == "increasing" or key not in LIKE_L1_AT_ZERO or "l1_weights" in options):
        weighted = ", l1_weights" if "l1_weights" in options else ""
        raise ValueError(
            f"lambdas must be given with direction={direction!r}, key={key!r}{weighted}: only decreasing paths with one of "
            f"{', '.join(LIKE_L1_AT_ZERO)} know where they start; pass lambdas=[...]"
        )
    with undisturbed_random_state():
        objective = Objective(model, loss, Batches("data", data, None, sample_weight), regularise)
        if isinstance(options.get("l1_weights"), Mapping):
            chosen, _ = param_groups(objective.model, regularise=regularise, **options)
            penalty = Penalty(key, l1_ratio, weight_decay, {**options, "l1_weights": chosen["l1_weights"]})
        if optimizer is None:
            penalty.check(objective.penalised, objective.unpenalised)
        held_out = None if validation is None else Batches("validation", validation)
        if held_out is not None and score is None:
            with objective.evaluating():
                objective.check(held_out, "validation")
        null, coordinates, maximum = None, Coordinates.plain(objective), None
        if direction == "decreasing":
            precise = Objective(
                model, loss, Batches("data", data, torch.float64, sample_weight), regularise, torch.float64
            )
            null = _start_from_zero(objective, precise, penalty.groups)
            if penalty.has_subdifferential:
                coordinates = null.coordinates.like(objective.params)
            if strengths is None:
                maximum = starting_strength(null, penalty.groups, positive=penalty.positive) / penalty.l1_ratio
                strengths = lambda_grid(maximum, n_lambdas, lambda_min_ratio).tolist()
        assert strengths is not None
        reference = null.pull if null is not None and penalty.has_subdifferential else max(strengths)
        tolerance = _tolerance(tol, reference, objective, coordinates)
        stop_at = 0.0 if math.isinf(tolerance) else tolerance
        solver: ProximalNewton | Training | DirectLasso | _Zero
        if null is not None and (null.exact or maximum == 0):
            solver = _Zero(objective)
        elif optimizer is not None:
            solver = Training(objective, penalty, optimizer, stop_at, int(max_steps), coordinates)
        else:
            general = partial(ProximalNewton, objective, penalty, stop_at, int(max_steps), coordinates)
            if null is not None and null.features is not None and penalty.key == "l1" and penalty.has_subdifferential:
                solver = DirectLasso(objective, precise, null.features, penalty, stop_at, int(max_steps), general)
            else:
                solver = general()
        points = Points(objective.penalised_names)
        for strength in shown(strengths, progress):
            solution = solver.solve(strength)
            points.add(
                objective.model,
                loss=solution.loss,
                penalty=penalty.value(strength, objective.penalised),
                score=None if held_out is None else objective.score(held_out, score),
                nonzeros=sum(int(param.count_nonzero()) for param in objective.penalised),
                zero_groups=penalty.zero_groups(objective.penalised),
                violation=solution.violation,
                converged=isinstance(solver, _Zero) or solution.violation <= tolerance,
                steps=solution.steps,
            )
    path = points.path(strengths)
    _warn(path, tolerance, all_zero=isinstance(solver, _Zero))
    return path


class _Zero:
    """Solves what the unpenalised parameters, fitted already, solve alone."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective

    def solve(self, strength: float) -> Solution:
        loss, gradients = self._objective.gradient()
        return Solution(loss, norm_inf(gradients), 0)


def _start_from_zero(objective: Objective, precise: Objective, groups: Groups | None) -> Null:
    """Sets the weights to zero and the other parameters to what fits best then, found in float64."""
    null = fit_null(precise, groups)
    with torch.no_grad():
        for param, exact in zip(objective.params, precise.params, strict=True):
            param.copy_(exact)
    return null


def _checked_lambdas(lambdas: Any, direction: str) -> list[float]:
    """Returns the strengths in the order in which they are visited."""
    if isinstance(lambdas, Tensor):
        lambdas = lambdas.tolist()
    if isinstance(lambdas, (str, bytes, dict)) or not hasattr(lambdas, "__iter__"):
        raise TypeError(f"lambdas must be a sequence of numbers, got {lambdas!r}")
    strengths = [checks.nonnegative(f"lambdas[{index}]", value) for index, value in enumerate(lambdas)]
    if not strengths:
        raise ValueError("lambdas is empty: pass at least one strength, or None for a grid")
    ordered = sorted(strengths, reverse=direction == "decreasing")
    if strengths != ordered:
        at = next(index for index, (a, b) in enumerate(zip(strengths, ordered, strict=True)) if a != b)
        order = "sorted(lambdas, reverse=True)" if direction == "decreasing" else "sorted(lambdas)"
        raise ValueError(
            f"lambdas must be in the order in which they are visited, which is {direction}; got lambdas[{at}] = {strengths[at]:g}, where "
            f"{ordered[at]:g} should be: pass {order}"
        )
    return strengths


def _tolerance(tol: Any, reference: float, objective: Objective, coordinates: Coordinates) -> float:
    """Returns the tolerance in the units of the coordinates; by default, no less than rounding leaves."""
    if tol is None:
        dtypes = [param.dtype for param in objective.params]
        tol = 1e-10 if all(dtype == torch.float64 for dtype in dtypes) else 1e-5
        tol = max(tol, 8 * max(torch.finfo(dtype).eps for dtype in dtypes) * coordinates.rounding)
    if isinstance(tol, bool) or not isinstance(tol, (int, float)) or not tol >= 0:
        raise ValueError(f"tol must be a number >= 0, got {tol!r}")
    return tol * (reference or norm_inf(objective.gradient()[1]) or 1.0)


def _warn(path: RegularizationPath, tolerance: float, *, all_zero: bool) -> None:
    if all_zero:
        warnings.warn(
            "all weights of the path are zero: the unpenalised parameters alone fit every target. Are all labels equal?",
            RuntimeWarning,
            stacklevel=3,
        )
    missed = (~path.converged).nonzero().flatten().tolist()
    if missed:
        worst = max(missed, key=lambda index: path.violations[index].item())
        warnings.warn(
            f"{len(missed)} of {len(path)} strengths did not converge: at lambda = {path.lambdas[worst]:.6g} the optimality "
            f"conditions are violated by {path.violations[worst]:.3g} after {path.steps[worst]} steps, and {tolerance:.3g} is "
            "allowed. Raise max_steps or tol, or standardise the inputs",
            RuntimeWarning,
            stacklevel=3,
        )
