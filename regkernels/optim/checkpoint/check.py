"""Checks whether a state dict fits an optimizer, before anything of it is loaded.

What torch.optim accepts is accepted, except where the next step would fail, or would go on with states that belong to
another parameter or to another method. Dtypes of floating-point states are none of that: they are converted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regkernels import validation
from regkernels.distributed import shards
from regkernels.optim import penalty_keys
from regkernels.optim.checkpoint.load import OWN_STATES, fill_missing_options
from regkernels.optim.step.entry import parameter_name
from regkernels.optim.step.protocol import Rules
from regkernels.reference import RULES
from regkernels.table.formats import KEPT_DTYPES

_BY_OPTION = {"momentum_buffer", "max_exp_avg_sq", "grad_avg", *KEPT_DTYPES}
"""States that come and go with an option of one optimizer (momentum, amsgrad, centered, param_rounding). That a rule has
no use for one of these does not mean that another optimizer has saved it."""

_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts that wrappers of a model (DDP, torch.compile, FSDP, activation checkpoints) add to the names of its parameters."""


def dictionary(state_dict: Any) -> dict[str, Any]:
    """Returns ``state_dict``; raises TypeError where it cannot be one."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"state_dict must be a dict as optimizer.state_dict() returns it, got {_shown(state_dict)}; "
            "load a file with torch.load(path, weights_only=True) first"
        )
    return state_dict  # type: ignore[return-value]


def check_state_dict(optimizer: Rules, own: Sequence[Mapping[str, Any]], state_dict: Mapping[str, Any]) -> None:
    """Raises where ``state_dict`` does not fit an optimizer with the param groups ``own``. Changes nothing.

    Raises:
        TypeError: where it is not built like a state dict, or a state is no tensor of a fitting type.
        ValueError: for other numbers of param groups or parameters, another order of parameters, options that are not allowed,
            states of another shape or another optimizer, step counts that are no counts.
    """
    saved, states = _parts(state_dict)
    _check_sizes(saved, own)
    _check_order(saved, own)
    groups = fill_missing_options(saved, own)
    rules = []
    for index, group in enumerate(groups):
        where = f" (param group {index} of the state dict)"
        optimizer._check_options(group, where, wait=True)
        rules.append(optimizer._rule(group))
    slots = list(_slots(groups, own))
    _check_ids([key for _, key, _, _ in slots], states)
    _check_that_states_were_saved(optimizer, rules, slots, states)
    positions = [position for group in own for position in range(len(group["params"]))]
    for (index, key, param, name), position in zip(slots, positions, strict=True):
        validation.complex_parameter(param, groups[index]["l1"], rules[index], name)
        penalty_keys.check_parameter(groups[index], position, param, name)
        if key in states:
            needed = RULES[rules[index]].state_names
            _check_state(states[key], param, name, needed, counts=optimizer._counts_steps)


Slot = tuple[int, Any, Tensor, str]
"""Index of the param group, id in the state dict, parameter, what messages call it."""


def _slots(saved: Sequence[Mapping[str, Any]], own: Sequence[Mapping[str, Any]]) -> Iterator[Slot]:
    """Yields all parameters with their ids: these are matched by position."""
    for index, (group, mine) in enumerate(zip(saved, own, strict=True)):
        for position, (key, param) in enumerate(zip(group["params"], mine["params"], strict=True)):
            yield index, key, param, parameter_name(mine, index, position)


# --- the whole ---


def _parts(state_dict: Mapping[str, Any]) -> tuple[Sequence[Mapping[str, Any]], Mapping[Any, Any]]:
    """Returns the param groups and the states; raises where there are none."""
    for key in ("param_groups", "state"):
        if key not in dictionary(state_dict):
            raise ValueError(
                f"the state dict has no key {key!r}, only {_listed(state_dict)}; pass what optimizer.state_dict() returned, "
                "of a checkpoint with several parts only that part"
            )
    saved, states = state_dict["param_groups"], state_dict["state"]
    if not isinstance(saved, Sequence) or not all(isinstance(group, Mapping) for group in saved):
        raise TypeError(f"the state dict's 'param_groups' must be a list of dicts, got {_shown(saved)}")
    if not isinstance(states, Mapping):
        raise TypeError(f"the state dict's 'state' must be a dict, got {_shown(states)}")
    for index, group in enumerate(saved):
        if not isinstance(group.get("params"), Sequence) or isinstance(group["params"], (str, bytes)):
            raise TypeError(
                f"'params' of param group {index} of the state dict must be a list of ids, got {_shown(group.get('params'))}"
            )
    return saved, states


def _check_sizes(saved: Sequence[Mapping[str, Any]], own: Sequence[Mapping[str, Any]]) -> None:
    """Raises where param groups, or parameters in one of them, are of another number."""
    if len(saved) != len(own):
        raise ValueError(
            f"the state dict has another number of parameter groups: {len(saved)}, this optimizer has {len(own)}; make the "
            "optimizer with the groups that it was saved with"
        )
    for index, (group, mine) in enumerate(zip(saved, own, strict=True)):
        if len(group["params"]) != len(mine["params"]):
            raise ValueError(
                f"param group {index} of the state dict has {len(group['params'])} parameters, which does not match the "
                f"size of optimizer's group: {len(mine['params'])}; load a state dict of the same model and groups"
            )
        names = group.get("param_names")
        if names is not None and len(names) != len(group["params"]):
            raise ValueError(
                f"param group {index} of the state dict has {len(names)} param_names for {len(group['params'])} parameters"
            )


def _check_order(saved: Sequence[Mapping[str, Any]], own: Sequence[Mapping[str, Any]]) -> None:
    """Raises where a name stands elsewhere, so that states would go to other parameters. Other names are none of our business."""
    theirs, ours = (
        {
            _bare(name): (index, position)
            for index, group in enumerate(groups)
            for position, name in enumerate(group.get("param_names") or ())
        }
        for groups in (saved, own)
    )
    for name, place in ours.items():
        if theirs.get(name, place) != place:
            index, position = theirs[name]
            raise ValueError(
                f"parameter {name!r} is number {place[1]} of param group {place[0]} here and number {position} of param group "
                f"{index} in the state dict: states are matched by position and would go to other parameters; make the "
                "optimizer with the order it was saved with, or reorder the dict in a load_state_dict pre-hook (with "
                "'param_names', or without them)"
            )


def _bare(name: str) -> str:
    """Returns a parameter's name without what wrappers have added."""
    return ".".join(part for part in str(name).split(".") if part not in _WRAPPERS)


def _check_ids(keys: Sequence[Any], states: Mapping[Any, Any]) -> None:
    """Raises where an id stands twice in the param groups, or none of the states is one of theirs."""
    twice, times = Counter(keys).most_common(1)[0] if keys else (None, 0)
    if times > 1:
        raise ValueError(f"the param groups of the state dict list the id {twice!r} twice; each parameter has its own")
    orphans = [key for key, state in states.items() if isinstance(state, Mapping) and not OWN_STATES.isdisjoint(state)]
    if keys and orphans and not any(key in states for key in keys):
        raise ValueError(
            f"the ids of the state dict's states, {_listed(orphans)}, are none of its param groups', {_listed(keys)}, so that "
            "no state would be loaded; ids must be equal in both (JSON makes strings of integers)"
        )


def _check_that_states_were_saved(
    optimizer: Rules, rules: Sequence[str], slots: Iterable[Slot], states: Mapping[Any, Any]
) -> None:
    """Raises where states are missing that torch.distributed.checkpoint should have made.

    It asks an optimizer without states to make some, but not where there are gradients: it then saves and loads nothing,
    without a word. Ids that are names come from there.
    """
    listed = [(index, key, param) for index, key, param, _ in slots]
    stateful = [(key, param) for index, key, param in listed if RULES[rules[index]].state_names and param.requires_grad]
    if (
        stateful
        and all(isinstance(key, str) and states.get(key) in (None, {}) for key, _ in stateful)
        and any(param.grad is not None for _, param in stateful)
    ):
        raise ValueError(
            "the state dict has no state for any parameter: torch.distributed.checkpoint makes states only where no "
            "parameter has a gradient, and those of a FlatParameters always have one; call model.zero_grad() before it "
            f"gets and sets the state of this {type(optimizer).__name__}"
        )


# --- the state of a parameter ---


def _check_state(state: Any, param: Tensor, name: str, needed: Sequence[str], *, counts: bool) -> None:
    """Raises where a state does not fit ``param``. ``needed``: what the rule goes on with. ``counts``: whether it counts steps."""
    if not isinstance(state, Mapping):
        raise TypeError(f"the state of {name} must be a dict, got {_shown(state)}")
    present = [key for key, value in state.items() if value is not None]
    known = [key for key in present if key in OWN_STATES or (counts and key == "step")]
    foreign = [key for key in known if key in OWN_STATES and key not in needed and key not in _BY_OPTION]
    if foreign:
        raise ValueError(
            f"the state of {name} has {_listed(foreign)}, which this optimizer does not use: it was saved by another one; "
            "load it into an optimizer of that kind, or start this one without its states"
        )
    lacking = [key for key in (*needed, *(["step"] if counts else [])) if key not in present]
    if known and lacking:
        raise ValueError(
            f"the state of {name} lacks {_listed(lacking)} and has {_listed(known)}: it was saved by another optimizer or "
            "with other options; make this one with the options it was saved with, or delete that state to start it anew"
            + ("; amsgrad may start from a copy of 'exp_avg_sq'" if lacking == ["max_exp_avg_sq"] else "")
        )
    for key in known:
        if key != "step":
            _check_tensor(key, state[key], param, name)
    validation.step_count(state.get("step"), name)


def _check_tensor(key: str, value: Any, param: Tensor, name: str) -> None:
    """Raises where a tensor of a state has another shape, type or layout than ``param`` needs."""
    what = f"the state {key!r} of {name}"
    if not isinstance(value, Tensor):
        raise TypeError(f"{what} must be a tensor, got {_shown(value)}; convert it (torch.as_tensor)")
    if value.layout != torch.strided:
        raise TypeError(f"{what} has layout {value.layout}; only dense states are supported, call to_dense()")
    if value.is_meta and not param.is_meta:
        raise TypeError(f"{what} is on the meta device and has no values; load it without map_location='meta'")
    if isinstance(param, torch.nn.UninitializedParameter):
        return
    shards.check_state(value, param, what)
    if value.shape != param.shape:
        raise ValueError(
            f"{what} has shape {tuple(value.shape)}, the parameter has {tuple(param.shape)}; load a state dict of the same "
            "model, saved by an optimizer that was given the parameters in the same order"
        )
    if key == "remainder":
        fits = value.dtype == KEPT_DTYPES[key]
        allowed = f"{KEPT_DTYPES[key]}; delete it where torch.optim has converted it, it then begins with 0"
    elif param.is_complex():
        fits, allowed = value.is_complex(), "a complex type"
    else:
        fits, allowed = value.is_floating_point(), "a floating-point type"
    if not fits:
        raise TypeError(f"{what} has dtype {value.dtype}; for a {param.dtype} parameter it must have {allowed}")


# --- words ---


def _shown(value: Any) -> str:
    """Says what a value is, for messages."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    return f"{type(value).__name__}: {repr(value)[:60]}"


def _listed(keys: Iterable[Any]) -> str:
    """Lists the first keys, for messages."""
    words = [repr(key) for key in keys]
    return (", ".join(words[:6]) + (", ..." if len(words) > 6 else "")) or "nothing"
