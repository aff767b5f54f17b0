"""Holds the handle whose hooks shrink weights after a step."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from regkernels import backends, transforms, turns, validation
from regkernels.attach import sources
from regkernels.attach.rows import Rows
from regkernels.attach.shrinkage import Item, Shrinkage, on_this_rank
from regkernels.attach.sources import Source
from regkernels.dynamo import outside_of_graphs
from regkernels.optim.checkpoint.load import fill_missing_options
from regkernels.optim.penalty_keys import Penalties, asked
from regkernels.optim.step.entry import parameter_name
from regkernels.optim.step.scaling import Scaling

MetricFunction = Callable[[Tensor, Mapping[str, Any], Mapping[str, Any]], "float | Tensor"]

STRENGTHS = ("l1", "prox_weight_decay")
KEYS = (*STRENGTHS, "shrink_limit")
"""What `attach_prox` adds to param groups."""


class ProxHandle:
    """Shrinks the weights of an optimizer after each of its steps, until it is removed; `attach_prox` makes one."""

    def __init__(self, source: Source, function: MetricFunction | None, own: dict[str, Any]) -> None:
        self._source, self._function, self._own = source, function, own
        self._hooks: list[Any] = []
        self._filled: set[tuple[int, str]] = set()
        self._shrinkages: dict[torch.device, Shrinkage] = {}
        self._lock = turns.lock()

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Fills in the strengths and registers the hooks. Everything has to be checked before."""
        self._optimizer = weakref.ref(optimizer)
        self._fill(optimizer)
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self),
            optimizer.register_load_state_dict_pre_hook(_keep_strengths),
        ]

    def remove(self) -> None:
        """Lets steps shrink nothing from now on, and takes out of the param groups the strengths that it had filled in."""
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
        self, error_class: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    def check_group(self, group: Mapping[str, Any], index: int, *, wait: bool) -> None:
        """Raises where options of a param group are not allowed."""
        where = f" (param group {index})"
        for key in STRENGTHS:
            validation.nonnegative(key, group[key], where, wait=wait)
        validation.shrink_limit(group["shrink_limit"], where)
        if group.get("differentiable"):
            raise ValueError(f"differentiable=True is not supported{where}: autograd cannot see into the kernel")
        sources.check_group(self._source, group, where)

    # --- hooks ---

    @outside_of_graphs
    def _before_step(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        self._fill(optimizer)
        for index, group in enumerate(optimizer.param_groups):
            check_family(optimizer, group, index)
            self.check_group(group, index, wait=False)

    @outside_of_graphs
    def __call__(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        with self._lock:
            self._shrink(optimizer)

    def _fill(self, optimizer: torch.optim.Optimizer) -> None:
        """Gives param groups the strengths that they do not have of their own, also those added or loaded later."""
        for index, group in enumerate(optimizer.param_groups):
            for key, value in self._own.items():
                if key not in group:
                    group[key] = value
                    self._filled.add((index, key))

    @torch.no_grad()
    def _shrink(self, optimizer: torch.optim.Optimizer) -> None:
        """Shrinks every weight that the step just made has moved: those with a gradient, in param groups that ask for it."""
        scaling = Scaling.handed_over(optimizer)
        if scaling.skips:
            return
        self._fill(optimizer)
        on: dict[torch.device, tuple[list[Item], Rows]] = {}
        for index, group in enumerate(optimizer.param_groups):
            if not asks(group):
                continue
            active: dict[torch.device, list[tuple[int, Tensor]]] = {}
            for position, param in enumerate(group["params"]):
                if param.grad is None or transforms.is_fake(param):
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
        """Finds the metric of the parameters ``active`` (with their places) of a param group, and adds to ``rows`` what it takes.

        Leaves out parameters that have not made a step yet.
        """
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
    """Lets param groups keep their strengths where a state dict has none, as one that was saved without L1."""
    own = [{key: group[key] for key in KEYS if key in group} for group in optimizer.param_groups]
    return {**state_dict, "param_groups": fill_missing_options(state_dict["param_groups"], own)}


def asks(group: Mapping[str, Any]) -> bool:
    """Tells whether a param group may ask for a shrinkage: a strength that only a device knows may be positive."""
    return any(validation.may_be_positive(group[key]) for key in STRENGTHS)


def check_family(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], index: int) -> None:
    """Raises where a param group asks for a penalty or constraint that nobody would apply. What is an option of the optimizer
    itself is its own."""
    mine = {key: group[key] for key in Penalties.__annotations__ if key in group and key not in optimizer.defaults}
    on = asked(mine) if mine else []
    if on:
        raise ValueError(
            f"{on[0]} is not applied by attach_prox (param group {index}): it adds l1 and weight decay; choose an optimizer of "
            "regkernels.optim, or leave it out"
        )
