"""Keeps accounts of a compaction: original numbers of channels, and why zeros are still there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regkernels.structure import layers, modules
from regkernels.structure.facts import Facts
from regkernels.structure.layouts import Units
from regkernels.structure.removal import Decision
from regkernels.structure.report import zero_slices
from regkernels.structure.results import Kept, Shrunk

Side = Literal["outputs", "inputs"]


class Numbers:
    """Remembers which channels of the original are left in each layer."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = {name: _own_parameters(module) for name, module in model.named_modules()}
        self._left: dict[tuple[str, str], Tensor] = {}
        self._removed: dict[tuple[str, str], list[int]] = {}

    def keep(self, keeping: Mapping[tuple[str, str], Tensor]) -> None:
        for key, mask in keeping.items():
            left = self._left.get(key, torch.arange(len(mask)))
            self._left[key] = left[mask]
            self._removed.setdefault(key, []).extend(left[~mask].tolist())

    def original(self, name: str, side: str, channels: Sequence[int]) -> tuple[int, ...]:
        left = self._left.get((name, side))
        return tuple(channels if left is None else left[list(channels)].tolist())

    def shrunk(self, model: nn.Module) -> tuple[Shrunk, ...]:
        names = {name for name, _ in self._removed}
        return tuple(self._entry(name, module) for name, module in model.named_modules() if name in names)

    def _entry(self, name: str, module: Any) -> Shrunk:
        kind = layers.kind_of(module)
        removed = {
            side: tuple(sorted(self._removed.get((name, side), ()))) for side in ("outputs", "inputs", "channels")
        }
        if isinstance(kind, layers.Kind):
            outputs = getattr(module, kind.output_size)
            inputs = None if kind.input_size is None else getattr(module, kind.input_size)
            # A depthwise convolution that has one channel left is a plain one.
            sides = (removed["outputs"], tuple(sorted(removed["inputs"] + removed["channels"])))
        else:
            outputs = module.num_parameters if isinstance(module, nn.PReLU) else module.num_features
            inputs, sides = None, (removed["channels"], ())
        return Shrunk(name, *sides, outputs, inputs, self._parameters[name], _own_parameters(module))


def _own_parameters(module: nn.Module) -> int:
    return sum(param.numel() for param in module.parameters(recurse=False))


def kept(
    model: nn.Module,
    facts: Facts,
    units: Units,
    decision: Decision,
    closed: Mapping[str, str],
    numbers: Numbers,
) -> tuple[Kept, ...]:
    """Gives reasons for the zeros that are left; ``closed`` has those of modules that were not looked into."""
    unread = _unread(facts, units)
    found: list[Kept] = []
    for name, module in model.named_modules():
        kind = layers.kind_of(module)
        if kind is None:
            continue
        reasons: dict[tuple[Side, str], list[int]] = {}
        if name in facts.outputs:
            zero = zero_slices(module.weight, kind.outputs if isinstance(kind, layers.Kind) else 0).tolist()
            for index, root in enumerate(units.roots(facts.outputs[name])):
                blocked = decision.blocked.get(root)
                if zero[index] or unread.get(root, False) or (blocked is not None and blocked.constant):
                    reasons.setdefault(("outputs", _reason(root, units, decision)), []).append(index)
        else:
            _add(reasons, "outputs", module, 0, _outside(name, facts, closed))
        if name in facts.fixed_inputs and not isinstance(module, nn.Embedding):
            dim = kind.inputs if isinstance(kind, layers.Kind) and kind.inputs is not None else 1
            _add(reasons, "inputs", module, dim, facts.fixed_inputs[name])
        for (side, reason), channels in reasons.items():
            found.append(Kept(name, side, numbers.original(name, side, channels), reason))
    for name, channels in facts.uneven.items():
        if channels:
            reason = "each key has to keep as many queries as the others"
            found.append(Kept(name, "inputs", numbers.original(name, "inputs", channels), reason))
    return tuple(found)


def _unread(facts: Facts, units: Units) -> dict[int, bool]:
    """Tells by root whether all that read it have zero weights for it."""
    unread: dict[int, bool] = {}
    for reading in facts.readings.values():
        for root, zero in zip(units.roots(reading.units), reading.unread.tolist(), strict=True):
            unread[root] = unread.get(root, True) and zero
    return unread


def _reason(root: int, units: Units, decision: Decision) -> str:
    blocked = decision.blocked.get(root)
    pinned = units.pinned(root)
    if pinned is not None:
        return pinned
    return blocked.reason if blocked is not None else "the last one of a layer"


def not_known(model: nn.Module) -> tuple[Kept, ...]:
    """Reports zero rows and columns of layers whose inputs and outputs cannot be told."""
    found: list[Kept] = []
    for name, module in model.named_modules():
        if layers.kind_of(module) is not None or modules.rule_for(module) is not None:
            continue
        for key, param in module.named_parameters(recurse=False):
            several = sum(1 for size in param.shape if size > 1) > 1
            for side, dim in _SIDES if several else ():
                zero = tuple(zero_slices(param, dim).nonzero().flatten().tolist())
                if zero:
                    found.append(Kept(name, side, zero, f"of {key}; {_why_not_known(module)}"))
    return tuple(found)


_SIDES: tuple[tuple[Literal["rows", "columns"], int], ...] = (("rows", 0), ("columns", 1))


def _why_not_known(module: nn.Module) -> str:
    if isinstance(module, nn.MultiheadAttention):
        return "MultiheadAttention of torch has embed_dim / num_heads channels per head, so that none can go"
    return f"{type(module).__name__} is not a layer that is known"


def _add(reasons: dict[tuple[Side, str], list[int]], side: Side, module: Any, dim: int, reason: str) -> None:
    zero = zero_slices(module.weight, dim).nonzero().flatten().tolist()
    if zero:
        reasons[side, reason] = zero


def _outside(name: str, facts: Facts, closed: Mapping[str, str]) -> str:
    """Says why a layer's outputs were not followed."""
    if name in facts.fixed_outputs:
        return facts.fixed_outputs[name]
    for parent in (name.rsplit(".", cut)[0] for cut in range(1, name.count(".") + 1)):
        if parent in closed:
            return f"{parent} {closed[parent]}"
    return f"{name} {closed[name]}" if name in closed else "forward does not call it as a module of its own"
