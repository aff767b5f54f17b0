"""Follows questions for sizes, and what is cut and indexed by their answers."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from torch import fx

from regkernels.structure import shapes
from regkernels.structure.facts import Facts
from regkernels.structure.layouts import Layout, Number, Pieces, Share, Sizes, Value


def sizes(x: Layout, of: object, dim: Any, facts: Facts) -> Value:
    """Follows ``x.size(dim)`` or ``x.shape[dim]``, ``dim`` an index or a slice."""
    if isinstance(dim, int):
        place = x.position(dim)
        if dim == 0 and (place is None or place != x.dim):
            return Number(batch_of=of)
        if place is not None:
            return Number() if place != x.dim else _counted(x, facts)
    elif isinstance(dim, slice) and x.rank is not None and x.rank + x.dim not in range(x.rank)[dim]:
        return Number()
    return facts.stop(x, "forward asks for their number")


def _counted(x: Layout, facts: Facts) -> Value:
    return Share(x, Fraction(1)) if x.spread is None else facts.stop(x, "forward asks for their number")


def fraction(x: Share, divisor: Any) -> Value | None:
    """Follows ``x.shape[dim] // divisor``, where nothing is left over."""
    if not isinstance(divisor, int) or divisor < 1:
        return None
    part = x.part / divisor
    return Share(x.layout, part) if (len(x.layout) * part).denominator == 1 else None


def split(facts: Facts, x: Layout, size: Value, dim: Any) -> Value | None:
    """Follows ``split`` into pieces of a share of the channels; a size that is written down does not follow their number."""
    if isinstance(size, Share):
        whole = size.layout is x and size.part.numerator == 1
        return shapes.chunked(facts, x, size.part.denominator, dim) if whole else None
    if isinstance(dim, int) and x.spread is None and x.position(dim) not in (None, x.dim):
        return None
    return facts.stop(x, "split into sizes that are written down, which do not follow their number; chunk would")


def indexed(facts: Facts, x: Value, of: object, index: Any) -> Value | None:
    """Follows ``x[index]``."""
    if isinstance(x, Sizes):
        return sizes(x.layout, x.of, index, facts)
    if isinstance(x, Pieces) and isinstance(index, int):
        return x.layouts[index]
    if isinstance(x, Pieces):
        return facts.stop_all(x.layouts, "indexed")
    assert isinstance(x, Layout)
    entries = _entries(x, index if isinstance(index, tuple) else (index,))
    return facts.stop(x, "indexed") if entries is None else _taken(facts, x, entries)


def _entries(x: Layout, index: tuple[Any, ...]) -> list[slice | None] | None:
    """Writes an index of slices and None out, with one slice per dimension; None where it is another one."""
    if x.spread is not None or any(not (part is None or part is Ellipsis or isinstance(part, slice)) for part in index):
        return None
    given = sum(1 for part in index if isinstance(part, slice))
    # Behind a leading "..." it does not matter how many dimensions there are in front.
    rank = max(-x.dim, given) if x.rank is None and index[0] is Ellipsis else x.rank
    if rank is None:
        return None
    whole = [slice(None)] * (rank - given)
    if Ellipsis not in index:
        return [*index, *whole]
    at = index.index(Ellipsis)
    return [*index[:at], *whole, *index[at + 1 :]]


def _taken(facts: Facts, x: Layout, entries: list[slice | None]) -> Value | None:
    places = [place for place, entry in enumerate(entries) if entry is not None]
    place = places[x.dim]
    moved = x.placed(dim=place - len(entries), rank=None if x.rank is None else len(entries))
    part = entries[place]
    assert part is not None
    if part == slice(None):
        return moved
    piece = _piece(facts, x, part)
    if piece is None:
        return None if any(isinstance(end, fx.Node) for end in (part.start, part.stop)) else facts.stop(x, _WRITTEN)
    count, which = piece
    cut = shapes.chunked(facts, moved, count, moved.dim)
    return cut.layouts[which] if isinstance(cut, Pieces) else cut


_WRITTEN = "sliced by numbers that are written down, which do not follow theirs; chunk would, or x.shape[-1] // 2"


def _piece(facts: Facts, x: Layout, part: slice) -> tuple[int, int] | None:
    """Returns into how many equal pieces a slice cuts, and which one it is."""
    ends = []
    for end, default in ((part.start, Fraction(0)), (part.stop, Fraction(1))):
        share = facts.value(end) if isinstance(end, fx.Node) else None
        if end is not None and not (isinstance(share, Share) and share.layout is x):
            return None
        ends.append(share.part if isinstance(share, Share) else default)
    start, width = ends[0], ends[1] - ends[0]
    if part.step is not None or width <= 0 or width.numerator != 1 or (start / width).denominator != 1:
        return None
    return width.denominator, int(start / width)


def unsqueezed(x: Layout, dim: Any) -> Value | None:
    """Follows ``x.unsqueeze(dim)``."""
    if not isinstance(dim, int) or x.spread is not None or (x.rank is None and dim >= 0):
        return None
    place = dim if dim < 0 else dim - (x.rank or 0) - 1
    return x.placed(dim=x.dim if place < x.dim else x.dim - 1, rank=None if x.rank is None else x.rank + 1)
