"""Copies param groups, with parameters' mirrors in the place of parameters.

What is no param group, or no parameter, passes through: the optimizer that is given it says what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from regkernels.optim.offload.mirror import Mirror
from regkernels.optim.step.l1_weights import L1Weights


def listed(params: Any) -> list[Any]:
    """Returns param groups that may be read more than once; copies of those given."""
    if isinstance(params, Tensor):
        raise TypeError("params must be an iterable of tensors or of dicts, got a tensor; pass [param]")
    given = list(params)
    groups = given if not given or isinstance(given[0], dict) else [{"params": given}]
    return [
        {**group, "params": _list_of(group["params"])} if isinstance(group, dict) and "params" in group else group
        for group in groups
    ]


def _list_of(params: Any) -> Any:
    if isinstance(params, Tensor):
        return [params]
    return params if isinstance(params, (set, str)) else list(params)


def named(groups: Iterable[Any], first: int = 0) -> list[tuple[Tensor, str]]:
    """Returns the parameters, with what messages call them. ``first``: the index of the first param group."""
    found = []
    for index, group in enumerate(groups, start=first):
        if not _is_group(group):
            continue
        names = group.get("param_names") or ()
        for position, item in enumerate(group["params"]):
            own, param = item if _is_pair(item) else (names[position] if position < len(names) else None, item)
            if isinstance(param, Tensor):
                name = f"parameter {position} of param group {index}"
                found.append((param, name if own is None else f"{name} ({own})"))
    return found


def on_cpu(group: Any, mirrors: Mapping[int, Mirror]) -> Any:
    """Returns a copy of ``group`` for the optimizer on the CPU; ``mirrors``: by the parameter's id."""
    if not _is_group(group):
        return group

    own = {**group, "params": [_mirrored(item, mirrors) for item in group["params"]]}
    return {**own, "l1_weights": _moved(own["l1_weights"])} if "l1_weights" in own else own


def _mirrored(item: Any, mirrors: Mapping[int, Mirror]) -> Any:
    """Returns what stands for a parameter, or a pair of a name and a parameter."""
    if _is_pair(item):
        return item[0], _mirrored(item[1], mirrors)
    return mirrors[id(item)].host if id(item) in mirrors else item


def _is_group(group: Any) -> bool:
    return isinstance(group, dict) and isinstance(group.get("params"), list)


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2


class Handover:
    """Hands over the options of param groups to those of the optimizer on the CPU."""

    def __init__(self) -> None:
        self._moved: dict[int, tuple[L1Weights, Any]] = {}  # those of a param group, and their copies on the CPU

    def options(self, groups: Iterable[Mapping[str, Any]], theirs: Iterable[dict[str, Any]]) -> None:
        """Makes the options of ``theirs`` those of ``groups``, but for the parameters."""
        for index, (own, group) in enumerate(zip(groups, theirs, strict=True)):
            for key in [key for key in group if key not in own]:
                del group[key]
            weights = group.get("l1_weights")
            group.update((key, value) for key, value in own.items() if key != "params")
            if own.get("l1_weights") is not None:
                group["l1_weights"] = self._l1_weights(index, own["l1_weights"], weights)

    def _l1_weights(self, index: int, given: Any, before: Any) -> Any:
        """Returns ``l1_weights`` on the CPU, moved again where somebody has changed them."""
        if not isinstance(given, (list, tuple)) or not all(isinstance(weight, Tensor) for weight in given):
            return given
        known = self._moved.get(index)
        if known is None or known[0].changed(given) or known[1] is not before:
            known = self._moved[index] = (L1Weights(given), _moved(given))
        return known[1]


def _moved(weights: Any) -> Any:
    if not isinstance(weights, (list, tuple)):
        return weights
    return [weight.cpu() if isinstance(weight, Tensor) else weight for weight in weights]


def refuse_capturable(groups: Iterable[Any]) -> None:
    """Raises where a param group asks for ``capturable``."""
    for group in groups:
        if isinstance(group, dict) and group.get("capturable"):
            raise ValueError(
                "capturable=True cannot be had with CPUOffload: its step runs on the CPU, which no CUDA graph records; "
                "leave it out"
            )
