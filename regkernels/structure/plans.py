"""Describes how a smaller model differs from its original, in plain numbers, and makes another copy of the original as small."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

VERSION = 1


@dataclasses.dataclass(frozen=True)
class Plan:
    """Holds what `regkernels.load_compacted` has to know of the original and of the changes."""

    model: str
    """The name of its class; not that of its module, which is another one where a program is run as __main__."""
    original: dict[str, list[int]]
    """Shapes of the tensors in the original's state dict."""
    sizes: dict[str, dict[str, int]]
    """Attributes that have another value now, by module."""

    def to_json(self) -> str:
        return json.dumps({"version": VERSION, **dataclasses.asdict(self)})


def from_json(text: str) -> Plan:
    """Reads what `Plan.to_json` wrote; raises ValueError for anything else."""
    written = json.loads(text)
    if not isinstance(written, dict) or written.pop("version", None) != VERSION:
        raise ValueError(
            f"its plan is not of version {VERSION}, which this regkernels reads; save it with this version"
        )
    fields = {field.name for field in dataclasses.fields(Plan)}
    if set(written) != fields:
        raise ValueError(f"its plan has {', '.join(sorted(written))} instead of {', '.join(sorted(fields))}")
    return Plan(**written)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns parameters and buffers that belong to the state dict; one that is tied comes under its first name only."""
    state, seen = {}, set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} in the state dict is a {type(tensor).__name__}, no tensor; only tensors are saved")
        if id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor
    return state


def shapes(model: nn.Module) -> dict[str, list[int]]:
    return {
        name: list(value.shape) for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)
    }


def compare(model: nn.Module, smaller: nn.Module) -> Plan:
    """Finds the differences; ``smaller`` has the same modules."""
    sizes = {}
    for (name, old), new in zip(model.named_modules(), smaller.modules(), strict=True):
        changed = {key: value for key, value in vars(new).items() if type(value) is int and vars(old).get(key) != value}
        if changed:
            sizes[name] = changed
    return Plan(type(model).__name__, shapes(model), sizes)


def check_fits(plan: Plan, model: nn.Module) -> None:
    """Raises where ``model`` is not as the original was."""
    if type(model).__name__ != plan.model:
        raise ValueError(f"it is of a {plan.model}, and model is a {type(model).__name__}; {REMEDY}")
    found = shapes(model)
    for name in sorted({*plan.original, *found}):
        if plan.original.get(name) != found.get(name):
            raise ValueError(
                f"{name} was {_said(plan.original, name)}, and in model it is {_said(found, name)}; {REMEDY}"
            )


REMEDY = "give a model that was built as the one that was compacted, before compaction"


def _said(shapes_by_name: Mapping[str, list[int]], name: str) -> str:
    shape = shapes_by_name.get(name)
    return "missing" if shape is None else f"of shape {tuple(shape)}"


def change(plan: Plan, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Gives ``model`` the sizes of the plan and the tensors in ``state``."""
    for name, sizes in plan.sizes.items():
        module = model.get_submodule(name)
        for key, value in sizes.items():
            if type(vars(module).get(key)) is not int or type(value) is not int:
                raise ValueError(f"{key} of {name} is no size that could become {value!r}; {REMEDY}")
            setattr(module, key, value)
    for name, tensor in state.items():
        path, _, key = name.rpartition(".")
        _put(model.get_submodule(path), key, tensor)


def _put(module: Any, key: str, tensor: Tensor) -> None:
    old = getattr(module, key, None)
    if old is not None and old.shape == tensor.shape:
        old.detach().copy_(tensor)
        return
    # A bias that compaction has added is like the weight.
    like = module.weight if old is None else old
    new = tensor.to(like)
    setattr(module, key, nn.Parameter(new, requires_grad=like.requires_grad) if isinstance(like, nn.Parameter) else new)
