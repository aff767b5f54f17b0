"""Follows where channels lie after flattening, permuting, chunking and joining."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from regkernels.structure.facts import Facts
from regkernels.structure.layouts import Layout, Pieces, Value


def flattened(facts: Facts, x: Layout, start: int, end: int) -> Value:
    """Follows ``flatten(start, end)``. Where the rank is not known, there is at least one dimension of samples."""
    if x.spread is None and x.rank is None and x.dim == -1 and start == 1 and end == -1:
        return x.placed(spread="tile")
    if x.rank is None or x.spread is not None:
        return facts.stop(x, "flattened, with a number of dimensions that is not known")
    start, end, channel = start % x.rank, end % x.rank, x.rank + x.dim
    rank = x.rank - (end - start)
    if channel < start:
        return x.placed(dim=channel - rank, rank=rank)
    if channel > end:
        return x.placed(rank=rank)
    if start == end:
        return x
    if channel == start:
        return x.placed(dim=start - rank, rank=rank, spread="repeat")
    if channel == end:
        return x.placed(dim=start - rank, rank=rank, spread="tile")
    return facts.stop(x, "flattened together with dimensions on both sides")


def permuted(facts: Facts, x: Layout, order: Sequence[int]) -> Value:
    rank = len(order)
    if x.spread is not None or (x.rank is not None and x.rank != rank):
        return facts.stop(x, "permuted after flattening")
    channel = [dim % rank for dim in order].index(rank + x.dim)
    return x.placed(dim=channel - rank, rank=rank)


def transposed(facts: Facts, x: Layout, a: int, b: int) -> Value:
    one, other = x.position(a), x.position(b)
    if one is None or other is None or x.spread is not None:
        return facts.stop(x, f"transposed ({a}, {b}), with a number of dimensions that is not known")
    return x.placed(dim={one: other, other: one}.get(x.dim, x.dim))


def reduced(facts: Facts, x: Layout, dims: Any, keepdim: bool, name: str) -> Value:
    """Follows mean, amax, amin or sum over dimensions without channels."""
    chosen = [dims] if isinstance(dims, int) else dims
    if not isinstance(chosen, (list, tuple)) or not all(isinstance(dim, int) for dim in chosen) or not chosen:
        return facts.stop(x, f"{name} goes over them")
    places = [x.position(dim) for dim in chosen]
    if None in places or x.dim in places or x.spread is not None:
        return facts.stop(x, f"{name} over dimensions {tuple(chosen)} may go over them")
    if name == "sum":
        x = x.constant_if_zero()
    if keepdim:
        return x
    behind = sum(1 for place in places if place is not None and place > x.dim)
    return x.placed(dim=x.dim + behind, rank=None if x.rank is None else x.rank - len(places))


def gated(facts: Facts, x: Layout, dim: int) -> Value:
    """Follows a gated linear unit: the first half of the channels times the sigmoid of the second."""
    pieces = chunked(facts, x, 2, dim)
    if not isinstance(pieces, Pieces):
        return pieces
    values, gates = pieces.layouts
    return product(values, gates.mapped(torch.sigmoid))


def chunked(facts: Facts, x: Layout, count: Any, dim: Any) -> Value:
    """Cuts into equal pieces along the channels; a channel is removed from all of them or from none."""
    if not isinstance(count, int) or not isinstance(dim, int) or x.spread is not None or x.position(dim) != x.dim:
        return facts.stop(x, "cut along another dimension")
    if len(x) % count != 0:
        return facts.stop(x, f"cut into {count} pieces that are not equal")
    index = torch.arange(len(x)).reshape(count, -1)
    for row in index[1:]:
        facts.units.tie(x.units[index[0]], x.units[row])
    return Pieces(tuple(x.taken(row) for row in index))


def expanded(facts: Facts, x: Layout, like: Layout) -> Value:
    """Follows ``expand_as``."""
    if (len(x), x.dim, x.spread) != (len(like), like.dim, like.spread):
        return facts.stop_all((x, like), "expanded to other channels")
    facts.units.tie(x.units, like.units)
    return x.placed(rank=like.rank)


def product(a: Layout, b: Layout) -> Layout:
    zero = (a.known & (a.value == 0)) | (b.known & (b.value == 0))
    rank = None if a.rank is None or b.rank is None else max(a.rank, b.rank)
    return a.placed(rank=rank).constant(zero | (a.known & b.known), torch.where(zero, 0, a.value * b.value))


def joined(facts: Facts, parts: Sequence[Layout], dim: Any) -> Value:
    """Follows ``torch.cat``, along the channels or along another dimension."""
    first = parts[0]
    places = {part.position(dim) if isinstance(dim, int) else None for part in parts}
    alike = all(part.dim == first.dim and part.spread is None for part in parts)
    if not alike or len(places) != 1 or None in places:
        return facts.stop_all(parts, "concatenated along a dimension that is not known")
    if places == {first.dim}:
        units, known, value = (torch.cat([getattr(part, key) for part in parts]) for key in ("units", "known", "value"))
        return first.placed(units=units, known=known, value=value)
    if any(len(part) != len(first) for part in parts):
        return facts.stop_all(parts, "concatenated with tensors that have other channels")
    known = first.known
    for part in parts[1:]:
        facts.units.tie(first.units, part.units)
        known = known & part.known & (part.value == first.value)
    return first.constant(known, first.value)
