"""Follows the MLP in torch's own transformer layers, whose hidden units can be removed."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import nn

from regkernels.structure import functions, layers, modules, weighted
from regkernels.structure.facts import Facts
from regkernels.structure.layouts import Fixed, Layout

_PARTS = ("linear1", "activation", "dropout", "linear2")


def feed_forwards(facts: Facts, name: str, module: nn.Module) -> None:
    """Follows ``linear2(dropout(activation(linear1(x))))`` in each layer that ``module``, one of torch.nn, has."""
    kinds = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
    found = [(part, layer) for part, layer in module.named_modules(prefix=name) if isinstance(layer, kinds)]
    places = Counter(id(m) for _, m in facts.model.named_modules(remove_duplicate=False)) if found else Counter()
    for part, layer in found:
        needed = (layer, layer.linear1, layer.dropout, layer.linear2)
        if all(places[id(m)] == 1 and modules.torch_forward(m) for m in needed):
            _feed_forward(facts, part, layer)


def _feed_forward(facts: Facts, name: str, layer: Any) -> None:
    names = {part: f"{name}.{part}".removeprefix(".") for part in _PARTS}
    if any(facts.locked(part) for part in (name, *names.values())):
        return
    first, second = (layers.kind_of(linear) for linear in (layer.linear1, layer.linear2))
    assert isinstance(first, layers.Kind) and isinstance(second, layers.Kind)
    hidden = weighted.layer(
        facts, names["linear1"], layer.linear1, first, Fixed(f"{name or 'the model'} is a {type(layer).__name__}")
    )
    activation = layer.activation
    rule = modules.rule_for(activation) if isinstance(activation, nn.Module) else None
    if rule is not None:
        made = rule(facts, names["activation"], activation, hidden)
    elif functions.is_elementwise(activation):
        made = hidden.mapped(activation)
    else:
        made = facts.stop(hidden, f"{names['activation']} is not known")
    if isinstance(made, Layout):
        made = made.constant_if_zero() if facts.training(layer.dropout) and layer.dropout.p > 0 else made
    outputs = weighted.layer(facts, names["linear2"], layer.linear2, second, made)
    facts.stop(outputs, f"{name} adds them to its input")
