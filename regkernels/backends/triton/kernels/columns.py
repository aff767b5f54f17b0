"""Holds the layout of the tables in device memory, as kernels need it: as constants of Triton.

Names and order are those of `regkernels.table.segments` and `regkernels.table.hyper`, whose tables these are; two columns that only
a launch of many programs needs are added.
"""

from __future__ import annotations

import triton.language as tl

from regkernels.table import segments
from regkernels.table.hyper import Hyper

FIELDS = (*segments.FIELDS, "first", "aligned")
"""``first``: the segment's first chunk. ``aligned``: whether all of its addresses are multiples of 16 bytes."""

WIDTH = tl.constexpr(len(FIELDS))
WEIGHT = tl.constexpr(segments.WEIGHT)
GRADIENT = tl.constexpr(segments.GRADIENT)
STATE0 = tl.constexpr(segments.STATE0)
KEPT = tl.constexpr(segments.KEPT)
L1_WEIGHT = tl.constexpr(segments.L1_WEIGHT)
NUMEL = tl.constexpr(segments.NUMEL)
ROW = tl.constexpr(segments.ROW)
STREAM = tl.constexpr(segments.STREAM)
PLACE = tl.constexpr(segments.PLACE)
GAP = tl.constexpr(segments.GAP)
GROUPS = tl.constexpr(segments.GROUPS)
INNER = tl.constexpr(segments.INNER)
FIRST = tl.constexpr(FIELDS.index("first"))
ALIGNED = tl.constexpr(FIELDS.index("aligned"))

PARAMETERS = tl.constexpr(len(Hyper._fields))
SKIP, SEED, STEP, GROUP_STRENGTH, GROUP_BY_SIZE, LARGEST_SHRINK = (
    tl.constexpr(Hyper._fields.index(name))
    for name in ("skip", "seed", "step", "group_strength", "group_by_size", "largest_shrink")
)

SUMS = tl.constexpr(len(segments.SUMS))
ABSOLUTE, SQUARE, NONZEROS, GRADIENT_SQUARE, ZERO_GROUPS = (tl.constexpr(k) for k in range(5))

CHUNK = tl.constexpr(8192)
"""Elements per program. Partial sums are formed per chunk and added in order, so this number is part of what makes a sum
reproducible; it depends on no property of the device."""
