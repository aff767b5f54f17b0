"""Does what torch leaves out, or spoils, when it loads a state dict."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import UninitializedParameter

from regkernels.distributed.index import part_of
from regkernels.distributed.shards import held, is_dtensor, lies_alike, spread_like
from regkernels.optim.step.states import make
from regkernels.reference import RULES, compute_dtype
from regkernels.table.formats import KEPT_DTYPES, Precision

OWN_STATES = {name for rule in RULES.values() for name in rule.state_names} | KEPT_DTYPES.keys()
"""States of all optimizers that are tensors of the parameter's shape. Others are the user's, and are carried along as they are."""


def fill_missing_options(saved: Sequence[Mapping[str, Any]], own: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns saved param groups with ``own`` values for keys they lack. They are matched by position."""
    filled = []
    for index, group in enumerate(saved):
        known = own[index] if index < len(own) else {}
        options = {key: value for key, value in known.items() if key not in ("params", "param_names")}
        filled.append({**options, **group})
        if "l1_weights" in group:
            filled[-1]["l1_weights"] = _placed(group["l1_weights"], known.get("params", ()))
    return filled


def _placed(weights: Any, params: Sequence[Tensor]) -> Any:
    """Returns ``l1_weights`` where torch loads states to: on their parameters' devices, in the types that these are computed in."""
    if not isinstance(weights, (list, tuple)) or len(weights) != len(params):
        return weights
    return [
        _spread(weight, param).to(param.device, compute_dtype(param.dtype))
        if isinstance(weight, Tensor) and weight.is_floating_point() and not weight.is_meta
        else weight
        for weight, param in zip(weights, params, strict=True)
    ]


def spread_states(state_dict: Mapping[str, Any], own: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns a state dict that fits the param groups ``own``, with states spread over ranks as their parameters are."""
    keys = (key for group in state_dict["param_groups"] for key in group["params"])
    params = (param for group in own for param in group["params"])
    states = dict(state_dict["state"])
    for key, param in zip(keys, params, strict=True):
        if is_dtensor(param) and isinstance(states.get(key), Mapping):
            states[key] = {
                name: _spread(value, param) if name in OWN_STATES and isinstance(value, Tensor) else value
                for name, value in states[key].items()
            }
    return {**state_dict, "state": states}


def _spread(value: Any, param: Any) -> Any:
    """Returns ``value`` spread as the parameter is; what does not fit it is left to those who say so."""
    if not is_dtensor(param) or value.shape != param.shape:
        return value
    if not is_dtensor(value):
        return part_of(value, param)
    return spread_like(held(value), param) if lies_alike(value, param) else value


def take_states(
    state: MutableMapping[Tensor, Any],
    incoming: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
    precision: Precision,
) -> None:
    """Copies states from ``incoming`` to where steps are going to use them.

    torch shares those that have the parameter's type, so that training would write into what was loaded, and spoils others: it
    casts all tensors to that type: integers, states that are float32 beside half-precision weights, states that are bfloat16
    beside float32 ones. Strings it takes for containers.
    """
    params = (param for group in groups for param in group["params"])
    keys = (key for group in incoming["param_groups"] for key in group["params"])
    wanted: list[tuple[Tensor, str, Tensor, torch.dtype]] = []
    for key, param in zip(keys, params, strict=True):
        own = precision.of(param)
        for name, value in incoming["state"].get(key, {}).items():
            if isinstance(value, str):
                state[param][name] = value
            elif not isinstance(value, Tensor):
                continue
            elif name in OWN_STATES and not isinstance(param, UninitializedParameter):
                wanted.append((param, name, value, own.dtype_of(name)))
            elif name == "step" or not param.is_floating_point():
                state[param][name] = value.to(device=state[param][name].device, copy=True)
            else:
                state[param][name] = value.to(device=param.device, copy=True)
    wanted.sort(key=lambda item: (item[1], held(item[0]).data_ptr()))  # states of neighbours are neighbours
    tensors = make([(param, dtype) for param, _, _, dtype in wanted])
    for (param, name, value, _), tensor in zip(wanted, tensors, strict=True):
        held(tensor).copy_(held(value))
        state[param][name] = tensor
