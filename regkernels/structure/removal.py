"""Decides which channels can be removed, and removes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from regkernels.structure import attention, layers
from regkernels.structure.facts import Facts, Reading
from regkernels.structure.layouts import Units


class Objection(NamedTuple):
    """Says why a layer cannot do without a channel, and whether this is although the channel is constant."""

    reason: str
    constant: bool = True


@dataclasses.dataclass
class Decision:
    """Names units by their roots: those that are removed, and those that a layer cannot do without."""

    removed: set[int]
    blocked: dict[int, Objection]


def decide(found: Sequence[Facts], units: Units) -> Decision:
    """Finds the channels whose every reader can do without them.

    A reader can where its weights for the channel are zero, or where the channel is a constant that its bias can take over: the same one
    in all modes, of which ``found`` has the facts, and not padded with zeros, except if it is zero itself.
    """
    slots = _joined(found, units)
    blocked: dict[int, Objection] = {}
    for name in {name: None for facts in found for name in facts.readings}:
        readings = [facts.readings[name] for facts in found if name in facts.readings]
        for index, root in enumerate(units.roots(readings[0].units)):
            objection = None if bool(readings[0].unread[index]) else _objection(name, readings, index)
            if objection is not None:
                blocked.setdefault(root, objection)
    rooted = [units.roots(slot) for slot in slots.values()]
    candidates = {root for roots in rooted for root in roots}
    removed = {root for root in candidates if units.pinned(root) is None and root not in blocked}
    for roots in rooted:
        if roots and removed.issuperset(roots):
            removed.discard(roots[0])
    return Decision(removed, blocked)


def _joined(found: Sequence[Facts], units: Units) -> dict[tuple[str, str], Tensor]:
    """Returns the units of each layer by name and side, those that it has in several modes tied together."""
    slots: dict[tuple[str, str], Tensor] = {}
    for facts in found:
        for key, slot in facts.slots().items():
            units.tie(slots.setdefault(key, slot), slot)
    for facts in found:
        for name, reason in facts.fixed_inputs.items():
            for side in ("inputs", "channels"):
                if (name, side) in slots:
                    units.pin(slots[name, side], reason)
    return slots


def _objection(name: str, readings: Sequence[Reading], index: int) -> Objection | None:
    known = [bool(reading.known[index]) for reading in readings]
    values = [reading.value[index].item() for reading in readings]
    first = values[0]
    if not any(known):
        return Objection(f"{name} reads them, and they are not constant there", constant=False)
    if not all(known):
        return Objection(f"{name} reads a constant in evaluation, but not in training; eval_only=True removes them")
    if first != 0 and readings[0].pads:
        return Objection(f"{name} reads a constant other than zero and pads with zeros: not exact at the borders")
    if any(abs(value - first) > 16 * torch.finfo(torch.float64).eps * abs(first) for value in values):
        return Objection(
            f"{name} reads one constant in evaluation and another one in training, as running statistics have not settled; "
            "eval_only=True removes them"
        )
    return None


def apply(model: nn.Module, found: Sequence[Facts], units: Units, decision: Decision) -> dict[tuple[str, str], Tensor]:
    """Removes the channels from all layers; returns by layer and side ("outputs", "inputs") which ones are kept."""
    keeping: dict[tuple[str, str], Tensor] = {}

    def kept(slot: Tensor) -> Tensor:
        return torch.tensor([root not in decision.removed for root in units.roots(slot)], dtype=torch.bool)

    readings = {name: reading for facts in reversed(found) for name, reading in facts.readings.items()}
    for name, reading in readings.items():
        keep = kept(reading.units)
        _fold(model.get_submodule(name), reading, ~keep & ~reading.unread & (reading.value != 0))
    for facts in found:
        keeping |= {key: kept(slot) for key, slot in facts.slots().items()}
    changed = {key: keep for key, keep in keeping.items() if not bool(keep.all())}
    dims = {name: dim for facts in found for name, (_, dim) in facts.scales.items()}
    for (name, side), keep in changed.items():
        if side == "scale":
            owner, _, attribute = name.rpartition(".")
            _select(model.get_submodule(owner), attribute, dims[name], keep)
        else:
            _shrink(model.get_submodule(name), side, keep)
    for name in found[0].heads:
        attention.resize(model.get_submodule(name))
    return changed


@torch.no_grad()
def _fold(module: Any, reading: Reading, chosen: Tensor) -> None:
    """Adds what the chosen constant inputs contribute to the bias."""
    if not bool(chosen.any()):
        return
    kind = layers.kind_of(module)
    assert isinstance(kind, layers.Kind)
    sums = layers.Weights(module, kind).sums(chosen.nonzero().flatten())
    wide = layers.bias_of(module, len(sums)) + sums @ reading.value[chosen].to(sums.dtype)
    weight = module.weight
    if module.bias is None:
        module.bias = nn.Parameter(wide.to(weight), requires_grad=weight.requires_grad)
    else:
        module.bias.copy_(wide.to(module.bias))


def _shrink(module: Any, side: str, keep: Tensor) -> None:
    count = int(keep.sum())
    kind = layers.kind_of(module)
    if not isinstance(kind, layers.Kind):
        for name in ("weight", "bias", "running_mean", "running_var"):
            _select(module, name, 0, keep)
        setattr(module, "num_parameters" if isinstance(module, nn.PReLU) else "num_features", count)
    elif side == "outputs":
        _select(module, "weight", kind.outputs, keep)
        _select(module, "bias", 0, keep)
        setattr(module, kind.output_size, count)
    elif kind.depthwise:
        module.in_channels = module.groups = count
    else:
        assert kind.inputs is not None and kind.input_size is not None
        _select(module, "weight", kind.inputs, keep)
        setattr(module, kind.input_size, count)


def _select(module: nn.Module, name: str, dim: int, keep: Tensor) -> None:
    tensor = getattr(module, name, None)
    if tensor is None:
        return
    smaller = tensor.detach().index_select(dim, keep.nonzero().flatten().to(tensor.device))
    smaller = layers.laid_out_like(tensor, smaller)
    if isinstance(tensor, nn.Parameter):
        smaller = nn.Parameter(smaller, requires_grad=tensor.requires_grad)
    setattr(module, name, smaller)
