"""Says how the groups of segments are dealt out to programs: by how they lie, how long they are and whether 16 bytes are moved at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy
import torch
from numpy.typing import NDArray

from regkernels import reference
from regkernels.backends.triton.kernels.columns import CHUNK
from regkernels.backends.triton.kernels.group_tiles import AT_ONCE
from regkernels.reference.kinds import Kind
from regkernels.table import segments

Integers = NDArray[numpy.integer[Any]]

ALIGNMENT = 16

LONG_RUN = 64
"""Elements side by side that are enough for the threads of a program; of groups with fewer it takes several."""

RESIDENT = 1024
"""Elements that a program holds at least, of rows that it reads once; of longer rows it has one."""

SPANS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Lengths of rows for which there are kernels; a row takes the next one, up to `longest`."""


class Cut(NamedTuple):
    """Describes the programs of a segment: the groups that each has, or 0 where elements are in none; the next power of two of their
    size, where it holds all of them, or 0; whether several share a group; and whether they move 16 bytes at a time."""

    strip: int
    span: int = 0
    shared: bool = False
    wide: bool = False


CUTS = (
    Cut(0),
    *(Cut(strip, 0, shared, wide) for strip in (1, 32) for shared in (False, True) for wide in (False, True)),
    *(Cut(max(RESIDENT // span, 1), span, wide=True) for span in SPANS),
)

_STRIPS = numpy.array([cut.strip for cut in CUTS])
_TILES = numpy.array([max(CHUNK.value // max(cut.span, RESIDENT), 1) if cut.span else 1 for cut in CUTS])
"""How many a program has, one after another."""


def holds_little(kind: Kind) -> bool:
    """Tells whether a step has few numbers for an element: of float32, two states at most and no random ones."""
    states = len(reference.RULES[kind.rule].state_names)
    return not draws(kind) and states < 3 and reference.compute_dtype(kind.dtype) == torch.float32


def draws(kind: Kind) -> bool:
    """Tells whether a step takes random numbers."""
    return kind.narrow or kind.rounding == "stochastic"


def longest(kind: Kind) -> int:
    """Returns the length of the longest rows that a program holds: registers have no room for more."""
    if holds_little(kind):
        return SPANS[-1]
    return 1024 if kind.dtype == torch.float64 else 2048


def cuts_of(table: Integers) -> Integers:
    """Returns the index in `CUTS` of each segment, none of which is empty."""
    found = numpy.zeros(len(table), dtype=numpy.int64)
    (grouped,) = numpy.nonzero(table[:, segments.GROUPS] > 0)
    if not len(grouped):
        return found
    of = table[grouped]
    groups, inner = of[:, segments.GROUPS], of[:, segments.INNER]
    outer = of[:, segments.NUMEL] // (groups * inner)
    aligned = (of[:, segments.WEIGHT : segments.NUMEL] % ALIGNMENT == 0).all(axis=1)
    span = numpy.searchsorted(SPANS, inner)
    kinds, kind = numpy.unique(of[:, segments.KIND], return_inverse=True)
    held = numpy.array([longest(Kind.of(int(number))) for number in kinds])[kind]
    # Element by element they would take more registers than there are.
    resident = aligned & (outer == 1) & (inner <= held) & (inner % 8 == 0)
    columns = inner < LONG_RUN
    wide = aligned & numpy.where(columns, (inner == 1) & (groups % 8 == 0), inner % 8 == 0)
    shared = _pieces(outer, inner, numpy.where(columns, 32, 1)) > 1
    found[grouped] = numpy.where(resident, len(CUTS) - len(SPANS) + span, 1 + 4 * columns + 2 * shared + wide)
    return found


def programs(table: Integers, cuts: Integers) -> Integers:
    """Returns how many programs each segment that falls into groups takes."""
    groups, inner = table[:, segments.GROUPS], numpy.maximum(table[:, segments.INNER], 1)
    outer = table[:, segments.NUMEL] // numpy.maximum(groups * inner, 1)
    strip = numpy.maximum(_STRIPS[cuts], 1)
    return -(-groups // (strip * _TILES[cuts])) * _pieces(outer, inner, strip)


def _pieces(outer: Integers, inner: Integers, strip: Integers) -> Integers:
    """Returns into how many pieces a strip of groups is cut, as `kernels.group_tiles.strip_of` does."""
    length = AT_ONCE.value // strip
    rows = numpy.maximum(length // inner, 1)
    return -(-outer // rows) * -(-inner // length)
