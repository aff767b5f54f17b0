"""Computes norms of groups of weights, and multiplies groups by a number per group.

A group has ``outer * inner`` elements: element k of it is element ``(k // inner * groups + group) * inner + k % inner`` of its
tensor. Its square sum is formed in pieces, each by one program together with those of its neighbours, which are then added
in order. No atomics; nothing depends on how many programs run at a time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from regkernels.backends.triton.kernels.dtypes import narrow, widen

FIELDS = (
    "weight",
    "out",
    "norms",
    "numel",
    "groups",
    "inner",
    "size",
    "pieces",
    "partials",
    "scale",
    "first_tile",
    "first_block",
)
"""Of a tensor: addresses, layout, where its partial sums begin, the bits of what its norms are multiplied by, and its first
program in the kernels that walk over tiles, and in that of norms."""

WIDTH = tl.constexpr(len(FIELDS))
(WEIGHT, OUT, NORMS, NUMEL, GROUPS, INNER, SIZE, PIECES, PARTIALS, SCALE, FIRST_TILE, FIRST_BLOCK) = (
    tl.constexpr(index) for index in range(len(FIELDS))
)

CHUNK = tl.constexpr(8192)
"""Elements per program, and the most of a tile."""

ROWS, COLUMNS, NORMS_AT_A_TIME = tl.constexpr(4), tl.constexpr(64), tl.constexpr(16)
"""Groups of a tile: where the elements of a group lie side by side, and where those of neighbouring groups do; and groups whose
norms one program computes."""


FAR = tl.constexpr(1 << 30)
"""More elements than a program has."""


@triton.constexpr_function
def axis_of(across):
    """Returns the axis of a tile on which groups lie: neighbours in memory are on the last one."""
    return 1 if across == COLUMNS else 0


@triton.jit
def find(table, owners, program, FIRST: tl.constexpr):
    """Finds the row of a program's tensor, and its number among the programs of that tensor."""
    row = table + tl.load(owners + program).to(tl.int64) * WIDTH
    return row, program - tl.load(row + FIRST)


@triton.jit
def spread(x, AXIS: tl.constexpr):
    """Lays a vector along one of two axes."""
    return tl.expand_dims(x, 1 - AXIS)


class Tiles(NamedTuple):
    """Describes what a program has: a piece of some groups, element ``begin`` to ``end`` of each, which it takes in tiles."""

    row: Any  # of the table
    groups: Any
    inner: Any
    size: Any
    group: Any  # the numbers of its groups, (ACROSS,)
    piece: Any
    begin: Any
    end: Any


@triton.jit
def tiles_of(table, owners, first_program, ACROSS: tl.constexpr, WIDE: tl.constexpr):
    row, program = find(table, owners, first_program + tl.program_id(0), FIRST_TILE)
    tile, pieces = program.to(tl.int32), tl.load(row + PIECES).to(tl.int32)
    groups, inner, size = tl.load(row + GROUPS), tl.load(row + INNER), tl.load(row + SIZE)
    if WIDE and ACROSS == COLUMNS:
        groups = tl.multiple_of(groups, 8)
    elif WIDE:
        inner, size = tl.multiple_of(inner, 8), tl.multiple_of(size, 8)
    piece = tile % pieces
    length: tl.constexpr = CHUNK // ACROSS
    begin = piece.to(tl.int64) * length
    group = (tile // pieces).to(tl.int64) * ACROSS + tl.arange(0, ACROSS)
    return Tiles(row, groups, inner, size, group, piece, begin, tl.minimum(begin + length, size))


@triton.jit
def later(tiles, element, j):
    """Finds which element of a run comes ``j`` elements after ``element`` of one, and how many runs later: divisions of 32 bits, which
    are quick."""
    room = tl.minimum(tiles.inner - element, FAR).to(tl.int32)
    inner = tl.minimum(tiles.inner, FAR).to(tl.int32)
    beyond = j - room
    runs = tl.where(beyond < 0, 0, 1 + beyond // inner)
    return runs, tl.where(beyond < 0, element + j, beyond % inner)


@triton.jit
def offsets_of(tiles, run, element, start, SPAN: tl.constexpr, ACROSS: tl.constexpr, WIDE: tl.constexpr):
    """Finds where the elements of a tile are, and which of them there are. It begins at element ``start`` of each group, which is
    ``element`` of a run."""
    AXIS: tl.constexpr = axis_of(ACROSS)
    j = tl.arange(0, SPAN)
    runs, elements = later(tiles, element, j)
    k = (run + runs) * tiles.groups * tiles.inner + elements
    if WIDE and ACROSS == COLUMNS:  # then a run has one element
        k = (start + j) * tiles.groups
        offsets = spread(k, 1 - AXIS) + spread(tiles.group, AXIS)
    else:
        offsets = spread(k, 1 - AXIS) + spread(tiles.group * tiles.inner, AXIS)
    if WIDE and ACROSS != COLUMNS:
        offsets = tl.max_contiguous(tl.multiple_of(offsets, (1, 8)), (1, 8))
    return offsets, spread(tiles.group < tiles.groups, AXIS) & spread(start + j < tiles.size, 1 - AXIS)


@triton.jit
def address(tiles, FIELD: tl.constexpr, STORAGE: tl.constexpr, WIDE: tl.constexpr):
    found = tl.load(tiles.row + FIELD).to(tl.pointer_type(STORAGE))
    if WIDE:
        found = tl.multiple_of(found, 16)
    return found


@triton.jit(do_not_specialize=["first_program"])
def group_squares(
    table,
    owners,
    partials,
    first_program: tl.int64,
    ACROSS: tl.constexpr,
    WIDE: tl.constexpr,
    PIPELINE: tl.constexpr,
    STORAGE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Forms the square sums of a piece of ACROSS groups. WIDE: the host promises that 16 bytes can be moved at a time. PIPELINE: how many
    tiles are on their way at a time, through shared memory; 1: none."""
    AXIS: tl.constexpr = axis_of(ACROSS)
    SPAN: tl.constexpr = BLOCK // ACROSS
    tiles = tiles_of(table, owners, first_program, ACROSS, WIDE)
    weight = address(tiles, WEIGHT, STORAGE, WIDE)
    lanes = tl.zeros([SPAN, ACROSS] if AXIS == 1 else [ACROSS, SPAN], tl.float64)
    run, element = tiles.begin // tiles.inner, tiles.begin % tiles.inner
    for start in tl.range(tiles.begin, tiles.end, SPAN, num_stages=PIPELINE):
        offsets, mask = offsets_of(tiles, run, element, start, SPAN, ACROSS, WIDE)
        x = widen(tl.load(weight + offsets, mask=mask, other=0.0), COMPUTE).to(tl.float64)
        lanes += x * x
        runs, element = later(tiles, element, SPAN)
        run += runs
    squares = tl.sum(lanes, axis=1 - AXIS)
    place = tl.load(tiles.row + PARTIALS) + tiles.piece * tiles.groups + tiles.group
    tl.store(partials + place, squares, mask=tiles.group < tiles.groups)


@triton.jit
def group_norms(table, owners, partials, totals, BLOCK: tl.constexpr):
    """Computes the norms of some groups from the square sums of their pieces, and ``totals``: their sum, times their scale."""
    SPAN: tl.constexpr = BLOCK // NORMS_AT_A_TIME
    program = tl.program_id(0).to(tl.int64)
    row, block = find(table, owners, program, FIRST_BLOCK)
    groups, pieces = tl.load(row + GROUPS), tl.load(row + PIECES)
    group = block * NORMS_AT_A_TIME + tl.arange(0, NORMS_AT_A_TIME)
    source = partials + tl.load(row + PARTIALS)
    lanes = tl.zeros([SPAN, NORMS_AT_A_TIME], tl.float64)
    for start in range(0, pieces, SPAN):
        piece = start + tl.arange(0, SPAN)
        mask = (piece < pieces)[:, None] & (group < groups)[None, :]
        lanes += tl.load(source + piece[:, None] * groups + group[None, :], mask=mask, other=0.0)
    norms = tl.sqrt(tl.sum(lanes, axis=0))
    out = tl.load(row + NORMS).to(tl.pointer_type(tl.float64))
    tl.store(out + group, norms, mask=group < groups)
    scale = tl.load(row + SCALE).to(tl.float64, bitcast=True)
    tl.store(totals + program, tl.where(scale != 0, scale * tl.sum(norms), 0.0))


@triton.jit(do_not_specialize=["first_program"], do_not_specialize_on_alignment=["upstream"])
def group_gradient(
    table,
    owners,
    upstream,
    first_program: tl.int64,
    ACROSS: tl.constexpr,
    WIDE: tl.constexpr,
    PIPELINE: tl.constexpr,
    STORAGE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Computes ``upstream * scale / norm * w`` of a piece of ACROSS groups; 0 for a group that is zero, or where the factor before
    the norm is."""
    AXIS: tl.constexpr = axis_of(ACROSS)
    SPAN: tl.constexpr = BLOCK // ACROSS
    tiles = tiles_of(table, owners, first_program, ACROSS, WIDE)
    weight, out = address(tiles, WEIGHT, STORAGE, WIDE), address(tiles, OUT, STORAGE, WIDE)
    norms = tl.load(tiles.row + NORMS).to(tl.pointer_type(tl.float64))
    scale = tl.load(upstream).to(tl.float64) * tl.load(tiles.row + SCALE).to(tl.float64, bitcast=True)
    norm = tl.load(norms + tiles.group, mask=tiles.group < tiles.groups, other=1.0)
    factor = spread(tl.where(scale == 0, 0.0, tl.where(norm == 0, 0.0, scale / norm)).to(COMPUTE), AXIS)
    run, element = tiles.begin // tiles.inner, tiles.begin % tiles.inner
    for start in tl.range(tiles.begin, tiles.end, SPAN, num_stages=PIPELINE):
        offsets, mask = offsets_of(tiles, run, element, start, SPAN, ACROSS, WIDE)
        w = widen(tl.load(weight + offsets, mask=mask, other=0.0), COMPUTE)
        tl.store(out + offsets, narrow(factor * w, STORAGE), mask=mask)
        runs, element = later(tiles, element, SPAN)
        run += runs
