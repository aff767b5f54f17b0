"""What is done to a state dict until it does not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from regkernels import optim
from tests.optim.checkpoint.cases import Packed, snapshot
from tests.support.training import network, train

NAN = float("nan")


def by_name(model: nn.Module) -> list[dict[str, Any]]:
    named = list(model.named_parameters())
    return [{"params": named[:2], "lr": 0.03}, {"params": named[2:]}]


def saved(kind: str, model: nn.Module, module: Any = optim, **options: Any) -> Packed:
    optimizer = getattr(module, kind)(by_name(model), **options)
    train(optimizer, model, range(2))
    return snapshot(optimizer.state_dict())


def edited(change: Callable[[Packed], Any]) -> Callable[[Packed], Packed]:
    def edited(packed: Packed) -> Packed:
        change(packed)
        return packed

    return edited


def in_the_state(key: str, value: Any) -> Callable[[Packed], Packed]:
    """With another value for a state of the second parameter; a function makes it from the old one."""

    def edited(packed: Packed) -> Packed:
        state = packed["state"][1]
        state[key] = value(state[key]) if callable(value) else value
        return packed

    return edited


def in_the_group(index: int = 0, **options: Any) -> Callable[[Packed], Packed]:
    return edited(lambda packed: packed["param_groups"][index].update(options))


def saved_by(kind: str, module: Any = torch.optim, **options: Any) -> Callable[[Packed], Packed]:
    return lambda packed: saved(kind, network(torch.float32), module, **options)


def without_options(packed: Packed) -> Packed:
    """As some trainers save it: states alone."""
    return {**packed, "param_groups": [{"params": group["params"]} for group in packed["param_groups"]]}


def renumbered(packed: Packed) -> Packed:
    return {**packed, "state": {str(key): state for key, state in packed["state"].items()}}


def swapped(packed: Packed) -> Packed:
    """The dict of a model whose first two parameters stand in the other order."""
    packed["state"][0], packed["state"][1] = packed["state"][1], packed["state"][0]
    packed["param_groups"][0]["param_names"].reverse()
    return packed


def wrapped_and_swapped(packed: Packed) -> Packed:
    packed = swapped(packed)
    for group in packed["param_groups"]:
        group["param_names"] = [f"module._orig_mod.{name}" for name in group["param_names"]]
    return packed


def no_names(packed: Packed) -> Packed:
    for group in packed["param_groups"]:
        del group["param_names"]
    return packed


def moved_to_the_other_group(packed: Packed) -> Packed:
    first, second = packed["param_groups"]
    for key in ("params", "param_names"):
        first[key], second[key] = second[key], first[key]
    return packed
