"""What torch's load_state_dict leaves out."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor

from regkernels.precision import Precision


def fill_missing_options(saved: Sequence[Mapping[str, Any]], own: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Saved param groups, with ``own`` values for keys they lack. Groups are matched by position."""
    filled = []
    for index, group in enumerate(saved):
        known = own[index] if index < len(own) else {}
        options = {key: value for key, value in known.items() if key not in ("params", "param_names")}
        filled.append({**options, **group})
    return filled


def restore_own_formats(
    state: MutableMapping[Tensor, Any],
    incoming: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
    precision: Precision,
) -> None:
    """Takes states from ``incoming`` where torch has cast them to the type of half-precision parameters: states that are
    float32, and integers."""
    params = (param for group in groups for param in group["params"])
    keys = (key for group in incoming["param_groups"] for key in group["params"])
    for key, param in zip(keys, params, strict=True):
        if key not in incoming["state"] or not param.is_floating_point() or param.dtype.itemsize >= 4:
            continue
        own = precision.of(param)
        for name, value in incoming["state"][key].items():
            if name == "step" or not isinstance(value, Tensor):
                continue
            dtype = own.dtype_of(name) if value.is_floating_point() else value.dtype
            state[param][name] = value.to(device=param.device, dtype=dtype, copy=True)
