"""Follows what is known inside of blocks that torch.fx does not look into: hidden units of MLPs, and heads of attention."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from torch import nn

from regkernels.structure import attention, functions, layers, modules, weighted
from regkernels.structure.facts import Facts
from regkernels.structure.layouts import Fixed, Layout


class FeedForward(NamedTuple):
    """Names the parts of ``second(dropout(activation(first(x))))`` in a block; without a dropout, it is empty."""

    first: str
    activation: str
    dropout: str
    second: str


_OF_TORCH = FeedForward("linear1", "activation", "dropout", "linear2")
FEED_FORWARDS: dict[str, FeedForward] = {
    "torch.nn.modules.transformer.TransformerEncoderLayer": _OF_TORCH,
    "torch.nn.modules.transformer.TransformerDecoderLayer": _OF_TORCH,
    "transformers.models.bert.modeling_bert.BertLayer": FeedForward(
        "intermediate.dense", "intermediate.intermediate_act_fn", "", "output.dense"
    ),
}


def is_known(module: nn.Module) -> bool:
    """Tells whether a block is followed that torch.fx would look into."""
    return layers.full_name(module) in FEED_FORWARDS or attention.recipe_for(module) is not None


def follow(facts: Facts, name: str, module: nn.Module) -> None:
    """Follows what is known in ``module`` and in all that it has."""
    found = [
        (part, block)
        for part, block in module.named_modules(prefix=name)
        if _feed_forward_of(block) is not None or attention.recipe_for(block) is not None
    ]
    places = Counter(id(m) for _, m in facts.model.named_modules(remove_duplicate=False)) if found else Counter()
    for part, block in found:
        if facts.locked(part) or any(places[id(m)] != 1 for m in block.modules()):
            continue
        names = _feed_forward_of(block)
        if names is not None:
            _feed_forward(facts, part, block, names)
        attention.follow(facts, part, block)


def _feed_forward_of(block: nn.Module) -> FeedForward | None:
    """Looks up a block by its class; of torch's also by a base, where forward is still torch's."""
    for base in type(block).__mro__:
        names = FEED_FORWARDS.get(f"{base.__module__}.{base.__qualname__}")
        if names is not None:
            own = type(block) is base and "forward" not in vars(block)
            return names if own or modules.torch_forward(block) else None
    return None


def _feed_forward(facts: Facts, name: str, block: Any, names: FeedForward) -> None:
    paths = {part: f"{name}.{part}".removeprefix(".") for part in names if part}
    first, second = (block.get_submodule(part) for part in (names.first, names.second))
    activation: Any = block
    for part in names.activation.split("."):
        activation = getattr(activation, part)
    dropout = block.get_submodule(names.dropout) if names.dropout else None
    plain = [m for m in (first, dropout, second) if m is not None]
    if any(facts.locked(path) for path in paths.values()) or not all(map(modules.torch_forward, plain)):
        return
    kinds = [layers.kind_of(linear) for linear in (first, second)]
    if not (isinstance(kinds[0], layers.Kind) and isinstance(kinds[1], layers.Kind)):
        return
    given = Fixed(f"{name or 'the model'} is a {type(block).__name__}")
    hidden = weighted.layer(facts, paths[names.first], first, kinds[0], given)
    rule = modules.rule_for(activation) if isinstance(activation, nn.Module) else None
    if rule is not None:
        made = rule(facts, paths[names.activation], activation, hidden)
    elif functions.is_elementwise(activation):
        made = hidden.mapped(activation)
    else:
        made = facts.stop(hidden, f"{paths[names.activation]} is not known")
    if isinstance(made, Layout) and dropout is not None:
        made = made.constant_if_zero() if facts.training(dropout) and dropout.p > 0 else made
    outputs = weighted.layer(facts, paths[names.second], second, kinds[1], made)
    facts.stop(outputs, f"{name} adds them to its input")
