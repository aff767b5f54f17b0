"""Knows what layers with weights do to channels: they make new ones out of those that they read."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from regkernels.structure import layers
from regkernels.structure.facts import Facts, Reading
from regkernels.structure.layouts import Fixed, Layout, Value


def layer(facts: Facts, name: str, module: nn.Module, kind: layers.Kind, x: Value) -> Layout:
    """Makes new channels, each out of all those that the layer reads, and records what it reads."""
    weights = facts.weights.get(name)
    if weights is None or weights.of is not module.weight:
        weights = facts.weights[name] = layers.Weights(module, kind)
    outputs, inputs = weights.nonzero.shape
    position = -1 - kind.spatial
    known, value = (
        torch.zeros(inputs, dtype=torch.bool),
        torch.zeros(inputs, dtype=weights.dtype),
    )
    read = x.sized(inputs) if isinstance(x, Layout) and x.dim == position else None
    pads = layers.pads_with_zeros(module)
    if kind.inputs is None:
        pass
    elif read is not None:
        known, value = read.known, read.value
        facts.readings[name] = Reading(read.units, known, value, ~weights.nonzero.any(0), pads)
    else:
        facts.fixed_inputs[name] = _unreadable(facts, name, x).reason
    known, value = layers.constant_outputs(module, weights, known, value, (value == 0) | (not pads))
    facts.outputs[name] = facts.units.of(name, outputs)
    rank = x.rank if isinstance(x, Layout) else (2 + kind.spatial if kind.spatial else None)
    made = Layout(facts.outputs[name], known, value, position, rank)
    return made.constant(known, value)


def depthwise(facts: Facts, name: str, module: Any, kind: layers.Kind, x: Value) -> Value:
    """Makes each channel out of one that the layer reads; both are removed together."""
    if not isinstance(x, Layout) or x.dim != -1 - kind.spatial or len(x) != module.groups or x.spread is not None:
        fixed = _unreadable(facts, name, x)
        facts.fixed_inputs[name] = facts.fixed_outputs[name] = fixed.reason
        return fixed
    index = torch.arange(module.groups).repeat_interleave(module.out_channels // module.groups)
    made = x.taken(index)
    facts.outputs[name] = made.units
    facts.channels[name] = x.units
    return made.constant(*layers.constant_outputs_of_depthwise(module, made.known, made.value))


def _unreadable(facts: Facts, name: str, x: Value) -> Fixed:
    if isinstance(x, Fixed):
        return x
    reason = f"{name} reads them along another dimension"
    return facts.stop(x, reason) if isinstance(x, Layout) else Fixed(reason)
