"""Follows ``view`` and ``reshape`` where their sizes follow the number of channels."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from torch import fx, nn

from regkernels.structure import shapes
from regkernels.structure.facts import Facts
from regkernels.structure.layouts import Layout, Number, Share, Sizes, Value


def viewed(facts: Facts, x: Layout, of: Any, sizes: Sequence[Any]) -> Value:
    """Takes ``x.view(x.size(0), -1)`` for ``x.flatten(1)``, and ``x.view(batch, channels, ...)`` for what it says.

    Other sizes are written down for the channels that there are now.
    """
    values = [facts.value(size) for size in sizes]
    if len(sizes) > 1 and _counts_samples(facts, values[0], of):
        if len(sizes) == 2 and sizes[1] == -1:
            return shapes.flattened(facts, x, 1, -1)
        if _keeps_channels(facts, x, sizes, values):
            return x.placed(dim=1 - len(sizes), rank=len(sizes))
    counted = [value.layout for value in values if isinstance(value, (Share, Sizes))]
    shown = ", ".join(str(size) for size in sizes)
    return facts.stop_all(
        (x, *counted), f"reshaped to ({shown}), which may not follow their number; flatten(1) or Flatten would"
    )


def _counts_samples(facts: Facts, size: Value, of: fx.Node) -> bool:
    if not isinstance(size, Number) or not isinstance(size.batch_of, fx.Node):
        return False
    return _samples(facts, size.batch_of) is _samples(facts, of)


def _keeps_channels(facts: Facts, x: Layout, sizes: Sequence[Any], values: Sequence[Value]) -> bool:
    """Tells whether dimension 1 is the channels before and after; what is counted has them, too, then."""
    if x.rank is None or x.rank + x.dim != 1 or x.spread is not None:
        return False
    if not all(isinstance(value, Number) and value.batch_of is None for value in values[2:]):
        return False
    channels = values[1]
    if isinstance(channels, Share) and channels.part == Fraction(1) and len(channels.layout) == len(x):
        facts.units.tie(x.units, channels.layout.units)
        return True
    return sizes[1] == -1 and x.rank == 2 and all(size == 1 for size in sizes[2:])


def _samples(facts: Facts, node: fx.Node) -> fx.Node:
    """Goes back, past what keeps dimension 0, to the tensor whose samples these are."""
    while isinstance(facts.values.get(node), Layout):
        source = _source(facts, node)
        if not isinstance(source, fx.Node):
            break
        node = source
    return node


def _source(facts: Facts, node: fx.Node) -> object:
    """Returns the tensor that has the same samples as ``node``; None where that is not known."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op == "call_module":
        module = facts.model.get_submodule(str(node.target))
        return None if isinstance(module, nn.Flatten) and module.start_dim == 0 else node.args[0]
    if name in ("view", "reshape"):
        size = facts.value(node.args[1][0] if isinstance(node.args[1], (tuple, list)) else node.args[1])
        return size.batch_of if isinstance(size, Number) else None
    return node.args[0] if name in ("relu", "sigmoid", "contiguous") or _over_places(node, name) else None


def _over_places(node: fx.Node, name: str) -> bool:
    """Tells whether a mean or maximum goes over dimensions behind the samples."""
    if name.startswith(("adaptive_avg_pool", "adaptive_max_pool", "avg_pool", "max_pool")):
        return True
    dims: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    chosen = [dims] if isinstance(dims, int) else dims
    if name not in ("mean", "amax", "sum") or not isinstance(chosen, (list, tuple)):
        return False
    return all(isinstance(dim, int) and dim > 0 for dim in chosen)
