"""Attaches the shrinkage to an optimizer: checks everything before anything is changed, and finds the metric."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from regkernels import optim, validation
from regkernels.attach import sources
from regkernels.attach.handle import MetricFunction, ProxHandle, asks, check_family
from regkernels.attach.shrinkage import check_parameter
from regkernels.attach.sources import Source
from regkernels.optim import misspelt
from regkernels.optim.effects import warn_of_no_limit, warn_of_rounding
from regkernels.optim.step.entry import parameter_name
from regkernels.table.hyper import SHRINK_LIMIT

L1_MODES = ("prox", "decoupled")


def attach_prox(
    optimizer: torch.optim.Optimizer,
    l1: float | Tensor | None = None,
    weight_decay: float | Tensor = 0.0,
    *,
    l1_mode: Literal["prox", "decoupled"] = "prox",
    metric: str | MetricFunction | None = None,
    shrink_limit: float | None = SHRINK_LIMIT,
) -> ProxHandle:
    """Adds exact L1, and weight decay as a proximal operator, to an optimizer of torch.optim or of somebody else.

    After each of its steps, every weight that had a gradient is soft-thresholded, and divided by ``1 + s_i * weight_decay``,
    in one pass over memory: with the threshold ``l1 * s_i``, where ``s_i`` is the step that the optimizer has taken for
    element i, times the gain of its momentum. That is read from its states, so that training ends where
    ``f(w) + l1 * sum |w| + weight_decay / 2 * sum w**2`` is smallest, and the zeros of that minimiser are exact zeros.

    The strengths live in the param groups, as ``l1`` and ``prox_weight_decay``, and so does ``shrink_limit``: they are saved in ``state_dict()`` and can be
    changed there during training. What a group says counts; the arguments fill in what groups do not say, also of groups
    that are added or loaded later. So biases are left out by groups with ``l1 = 0``, as `regkernels.param_groups` makes them.

    Args:
        optimizer: any ``torch.optim.Optimizer`` that updates dense, real parameters in place. Not one of
            `regkernels.optim`, which do all of this in their own pass. ``weight_decay`` of the optimizer remains its own: in
            the gradient it is added to what is solved for; AdamW's is not part of any objective.
        l1: strength of the L1 penalty, >= 0, in units of the loss: a float, or a tensor of one element (on the weights'
            device, where a captured graph is to see it change). None: the groups say it, and those that do not have 0.
        weight_decay: >= 0, with the factor 1/2; so ``weight_decay = 2 * l2`` of `regkernels.l2_penalty`.
        l1_mode: "prox" as above. "decoupled" takes ``lr`` for all ``s_i``: zeros for any optimizer, but it shrinks all
            elements alike and solves no lasso.
        metric: where "prox" finds ``s_i``. None: by the optimizer's class, for Adam, AdamW, NAdam, RAdam, Adamax, RMSprop,
            Adagrad and SGD of torch.optim. "adam", "nadam", "radam", "adamax", "rmsprop", "adagrad", "sgd": as that one, for an
            optimizer that has the same names of states and options and makes the same step. A function ``(param, state,
            group)`` that returns ``s_i`` of the step just made, >= 0: a number, or a tensor of the parameter's shape.
        shrink_limit: what is taken from a weight at most, in units of ``lr`` times the gain, where ``s_i`` is read from the states
            of an optimizer that adapts it; > 1, which leaves the solution as it is. Where there is no gradient ``s_i`` grows to
            ``lr / eps``, which would erase weights that no data has reached yet. Steps that a function returns are taken as they
            are. None: no limit.

    Returns:
        A handle: ``remove()`` ends it, and it is a context manager that does so. torch copies and pickles no hooks: a copied
        or unpickled optimizer has the strengths in its groups and has to be attached to anew.

    Raises:
        TypeError, ValueError: naming what is not allowed, before anything is changed: an optimizer without a known metric, with
            sparse gradients, with line search (LBFGS), of regkernels, or attached to already; a strength that is negative or
            not finite (also in a group, before each step).
        RuntimeError: after a step, where a gradient was sparse or a state is missing that the metric is computed from.

    A step that is left out (torch.amp.GradScaler found an infinity) shrinks nothing, and ``lr == 0`` leaves every bit alone.
    Of parameters that are spread over ranks (`DTensor`, FSDP's) each rank shrinks its own part, without a message.
    Half-precision weights are rounded to nearest: in bfloat16 a shrinkage below ``2**-9 * |w|`` is lost, in float16 one below
    ``2**-12 * |w|``.

    Sources: Duchi, Hazan and Singer (2011), section 5, for the proximal step in an adaptive metric; Parikh and Boyd (2014).
    """
    _check_optimizer(optimizer)
    validation.one_of("l1_mode", l1_mode, L1_MODES)
    source = _source(optimizer, l1_mode, metric)
    if l1 is None and not any("l1" in group for group in optimizer.param_groups):
        raise ValueError(
            "l1 is missing: pass l1=, or give the param groups a key 'l1' (regkernels.param_groups(model, l1=...) does)"
        )
    strengths = {"l1": 0.0 if l1 is None else l1, "prox_weight_decay": weight_decay}
    validation.nonnegative("l1", strengths["l1"])
    validation.nonnegative("weight_decay", weight_decay)
    validation.shrink_limit(shrink_limit)
    misspelt.warn_of_overridden(strengths, optimizer.param_groups)
    own = {**strengths, "shrink_limit": shrink_limit}
    handle = ProxHandle(source, metric if callable(metric) else None, own)
    for index, group in enumerate(optimizer.param_groups):
        filled = {**own, **group}
        check_family(optimizer, group, index)
        handle.check_group(filled, index, wait=True)
        if asks(filled):
            for position, param in enumerate(group["params"]):
                if validation.is_trained(param):
                    check_parameter(param, parameter_name(group, index, position))
    handle.attach(optimizer)
    of_prox = {"l1_mode": l1_mode, "weight_decay_mode": "prox"}
    asked = [
        {**own, **group, **of_prox, "weight_decay": group.get("prox_weight_decay", weight_decay)}
        for group in optimizer.param_groups
    ]
    for index, group in enumerate(asked):
        remedy = "keep weights in float32, or choose an optimizer of regkernels.optim, which can round otherwise"
        warn_of_rounding(group, "nearest", asked[:index], remedy)
        warn_of_no_limit(group)
    return handle


def _check_optimizer(optimizer: object) -> None:
    """Raises for an optimizer whose weights cannot be shrunk after its step, saying what to do instead."""
    name = type(optimizer).__name__
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {name}")
    if isinstance(optimizer, optim.Optimizer):
        raise TypeError(f"regkernels.optim.{name} has L1 in its own pass over memory: pass l1= to it")
    if isinstance(optimizer, (torch.optim.LBFGS, torch.optim.SparseAdam)):
        raise TypeError(
            f"attach_prox cannot work with {name}: "
            + (
                "its steps are made along a line for which the objective has to be smooth; choose another optimizer"
                if isinstance(optimizer, torch.optim.LBFGS)
                else "its gradients are sparse, and only dense ones are supported; choose Adam (for nn.Embedding, sparse=False)"
            )
        )
    hooks = vars(optimizer).get("_optimizer_step_post_hooks")
    if hooks is None:
        raise TypeError(
            f"{name} wraps another optimizer and has no hooks: attach to the one that it wraps, before it does"
        )
    if name == "ZeroRedundancyOptimizer":
        raise TypeError(
            f"{name} wraps another optimizer, which has the states: attach_prox(optimizer.optim, ...), on every rank"
        )
    if any(isinstance(hook, ProxHandle) for hook in hooks.values()):
        raise ValueError(
            "attach_prox was called for this optimizer before: weights would be shrunk twice; remove() the first handle, or "
            "change group['l1']"
        )


def _source(optimizer: torch.optim.Optimizer, l1_mode: str, metric: str | MetricFunction | None) -> Source:
    """Returns where the metric of an optimizer is found; raises where nobody knows."""
    if l1_mode == "decoupled":
        if metric is not None:
            raise ValueError(f"metric={metric!r} belongs to l1_mode='prox'; 'decoupled' takes lr for every element")
        return sources.UNIFORM
    if isinstance(metric, str):
        validation.one_of("metric", metric, tuple(sources.SOURCES))
        return sources.SOURCES[metric]
    if metric is not None and not callable(metric):
        raise TypeError(f"metric must be a name, a function (param, state, group) -> step, or None, got {metric!r}")
    source = sources.UNIFORM if metric is not None else sources.of_class(type(optimizer))
    if source is None:
        raise ValueError(
            f"l1_mode='prox' needs the step that {type(optimizer).__name__} takes for each element, which is known for Adam, "
            "AdamW, NAdam, RAdam, Adamax, RMSprop, Adagrad and SGD of torch.optim. Choose l1_mode='decoupled', a threshold of "
            "lr * l1 for every element; or metric='adam' (or another name) where states, options and step are those of that "
            "optimizer; or pass metric=function, (param, state, group) -> step per element"
        )
    return source
