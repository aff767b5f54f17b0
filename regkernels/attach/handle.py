"""The hook that shrinks weights after a step."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from regkernels import backends, optim, validation
from regkernels.attach import sources
from regkernels.attach.rows import Rows
from regkernels.attach.shrinkage import Item, Shrinkage, check_parameter, on_this_rank
from regkernels.attach.sources import Source
from regkernels.dynamo import outside_of_graphs
from regkernels.optim import misspelt
from regkernels.optim.checkpoint.load import fill_missing_options
from regkernels.optim.penalty_keys import Penalties, asked
from regkernels.optim.step.entry import parameter_name
from regkernels.optim.step.scaling import Scaling

MetricFunction = Callable[[Tensor, Mapping[str, Any], Mapping[str, Any]], "float | Tensor"]

KEYS = ("l1", "prox_weight_decay")
L1_MODES = ("prox", "decoupled")


def attach_prox(
    optimizer: torch.optim.Optimizer,
    l1: float | Tensor | None = None,
    weight_decay: float | Tensor = 0.0,
    *,
    l1_mode: str = "prox",
    metric: str | MetricFunction | None = None,
) -> ProxHandle:
    """Adds exact L1, and weight decay as a proximal operator, to an optimizer of torch.optim or of somebody else.

    After each of its steps, every weight that had a gradient is soft-thresholded, and divided by ``1 + s_i * weight_decay``,
    in one pass over memory: with the threshold ``l1 * s_i``, where ``s_i`` is the step that the optimizer has taken for
    element i, times the gain of its momentum. That is read from its states, so that training ends where
    ``f(w) + l1 * sum |w| + weight_decay / 2 * sum w**2`` is smallest, and the zeros of that minimiser are exact zeros.

    The strengths live in the param groups, as ``l1`` and ``prox_weight_decay``: they are saved in ``state_dict()`` and can be
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
    own = {"l1": 0.0 if l1 is None else l1, "prox_weight_decay": weight_decay}
    validation.nonnegative("l1", own["l1"])
    validation.nonnegative("weight_decay", weight_decay)
    misspelt.warn_of_overridden(own, optimizer.param_groups)
    handle = ProxHandle(source, metric if callable(metric) else None, own)
    for index, group in enumerate(optimizer.param_groups):
        filled = {**own, **group}
        _check_family(optimizer, group, index)
        handle.check_group(filled, index, wait=True)
        if _asks(filled):
            for position, param in enumerate(group["params"]):
                check_parameter(param, parameter_name(group, index, position))
    handle.attach(optimizer)
    return handle


class ProxHandle:
    """What `attach_prox` returns."""

    def __init__(self, source: Source, function: MetricFunction | None, own: dict[str, float | Tensor]) -> None:
        self._source, self._function, self._own = source, function, own
        self._hooks: list[Any] = []
        self._filled: set[tuple[int, str]] = set()
        self._shrinkages: dict[torch.device, Shrinkage] = {}

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = weakref.ref(optimizer)
        self._fill(optimizer)
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self),
            optimizer.register_load_state_dict_pre_hook(_keep_strengths),
        ]

    def remove(self) -> None:
        """From now on steps shrink nothing. Takes the strengths out of the param groups again that it had filled in."""
        for hook in self._hooks:
            hook.remove()
        optimizer = self._optimizer()
        if self._hooks and optimizer is not None:
            for index, key in self._filled:
                if index < len(optimizer.param_groups):
                    optimizer.param_groups[index].pop(key, None)
        self._hooks, self._shrinkages = [], {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    def check_group(self, group: Mapping[str, Any], index: int, *, wait: bool) -> None:
        """Raises where options of a param group are not allowed."""
        where = f" (param group {index})"
        for key in KEYS:
            validation.nonnegative(key, group[key], where, wait=wait)
        if group.get("differentiable"):
            raise ValueError(f"differentiable=True is not supported{where}: autograd cannot see into the kernel")
        sources.check_group(self._source, group, where)

    # --- hooks ---

    @outside_of_graphs
    def _before_step(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        self._fill(optimizer)
        for index, group in enumerate(optimizer.param_groups):
            _check_family(optimizer, group, index)
            self.check_group(group, index, wait=False)

    @outside_of_graphs
    def __call__(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        self._shrink(optimizer)

    def _fill(self, optimizer: torch.optim.Optimizer) -> None:
        for index, group in enumerate(optimizer.param_groups):
            for key, value in self._own.items():
                if key not in group:
                    group[key] = value
                    self._filled.add((index, key))

    @torch.no_grad()
    def _shrink(self, optimizer: torch.optim.Optimizer) -> None:
        scaling = Scaling.handed_over(optimizer)
        if scaling.skips:
            return
        self._fill(optimizer)
        on: dict[torch.device, tuple[list[Item], Rows]] = {}
        for index, group in enumerate(optimizer.param_groups):
            if not _asks(group):
                continue
            active: dict[torch.device, list[tuple[int, Tensor]]] = {}
            for position, param in enumerate(group["params"]):
                if param.grad is None:
                    continue
                if param.grad.layout != torch.strided:
                    raise RuntimeError(
                        f"the gradient of {parameter_name(group, index, position)} has layout {param.grad.layout}: which of its weights "
                        "the step has moved, and so which to shrink, cannot be told (for nn.Embedding, pass sparse=False); the "
                        "step was made, without L1"
                    )
                active.setdefault(param.device, []).append((position, param))
            for device, members in active.items():
                items, rows = on.setdefault(device, ([], Rows(scaling.skip)))
                items.extend(self._items(optimizer, group, index, members, rows))
        for device, (items, rows) in on.items():
            if items:
                shrinkage = self._shrinkages.setdefault(device, Shrinkage(device))
                shrinkage.load(on_this_rank(items))
                backends.backend_for(device).proximal(shrinkage.batch(rows.rows))
                shrinkage.save()

    def _items(
        self,
        optimizer: torch.optim.Optimizer,
        group: Mapping[str, Any],
        index: int,
        active: Sequence[tuple[int, Tensor]],
        rows: Rows,
    ) -> list[Item]:
        states = [optimizer.state.get(param, {}) for _, param in active]
        function = self._function
        if function is not None:
            found = [
                rows.given(group, function(param, state, group), param, parameter_name(group, index, position))
                for (position, param), state in zip(active, states, strict=True)
            ]
            return [
                Item(param, group, (index, position), *given)
                for (position, param), given in zip(active, found, strict=True)
            ]
        metric, keys = self._source.operands(group)
        try:
            operands = [tuple([state[key] for key in keys]) for state in states]
            numbers = rows.computed(group, metric, self._source, states)
        except KeyError as error:
            raise RuntimeError(
                f"a parameter of param group {index} has a gradient but no state {error}, from which its metric is computed: the "
                "step was made, without L1. Choose another metric=, or l1_mode='decoupled'"
            ) from error
        return [
            Item(param, group, (index, position), metric, found, row)
            for (position, param), found, row in zip(active, operands, numbers, strict=True)
            if row is not None
        ]


def _keep_strengths(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state dict saved without L1 has no strengths: the groups keep theirs."""
    own = [{key: group[key] for key in KEYS if key in group} for group in optimizer.param_groups]
    return {**state_dict, "param_groups": fill_missing_options(state_dict["param_groups"], own)}


def _asks(group: Mapping[str, Any]) -> bool:
    return any(validation.may_be_positive(group[key]) for key in KEYS)


def _check_family(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], index: int) -> None:
    """Raises where a group asks for a penalty or constraint that nobody would apply. What is an option of the optimizer
    itself is its own."""
    mine = {key: group[key] for key in Penalties.__annotations__ if key in group and key not in optimizer.defaults}
    on = asked(mine) if mine else []
    if on:
        raise ValueError(
            f"{on[0]} is not applied by attach_prox (param group {index}): it adds l1 and weight decay; choose an optimizer of "
            "regkernels.optim, or leave it out"
        )


def _check_optimizer(optimizer: object) -> None:
    kind = type(optimizer).__name__
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {kind}")
    if isinstance(optimizer, optim.Optimizer):
        raise TypeError(f"regkernels.optim.{kind} has L1 in its own pass over memory: pass l1= to it")
    if isinstance(optimizer, (torch.optim.LBFGS, torch.optim.SparseAdam)):
        raise TypeError(
            f"attach_prox cannot work with {kind}: "
            + (
                "its steps are made along a line for which the objective has to be smooth; choose another optimizer"
                if isinstance(optimizer, torch.optim.LBFGS)
                else "its gradients are sparse, and only dense ones are supported; choose Adam (for nn.Embedding, sparse=False)"
            )
        )
    hooks = vars(optimizer).get("_optimizer_step_post_hooks")
    if hooks is None:
        raise TypeError(
            f"{kind} wraps another optimizer and has no hooks: attach to the one that it wraps, before it does"
        )
    if kind == "ZeroRedundancyOptimizer":
        raise TypeError(
            f"{kind} wraps another optimizer, which has the states: attach_prox(optimizer.optim, ...), on every rank"
        )
    if any(isinstance(hook, ProxHandle) for hook in hooks.values()):
        raise ValueError(
            "attach_prox was called for this optimizer before: weights would be shrunk twice; remove() the first handle, or "
            "change group['l1']"
        )


def _source(optimizer: torch.optim.Optimizer, l1_mode: str, metric: str | MetricFunction | None) -> Source:
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
