"""Computes norms of groups of weights, and multiplies groups by a number per group.

A group has ``outer * inner`` elements: element k of it is element ``(k // inner * groups + group) * inner + k % inner`` of its
tensor. Its square sum is formed in pieces, each by one program together with those of its neighbours, which are then added
in order. No atomics; nothing depends on how many programs run at a time.
"""

from __future__ import annotations

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
    "first_chunk",
)
"""Of a tensor: addresses, layout, where its partial sums begin, the bits of what its norms are multiplied by, and its first
program in each kernel."""

WIDTH = tl.constexpr(len(FIELDS))
(WEIGHT, OUT, NORMS, NUMEL, GROUPS, INNER, SIZE, PIECES, PARTIALS, SCALE, FIRST_TILE, FIRST_BLOCK, FIRST_CHUNK) = (
    tl.constexpr(index) for index in range(len(FIELDS))
)

CHUNK = tl.constexpr(8192)
"""Elements per program, and the most of a tile."""

ROWS, COLUMNS, NORMS_AT_A_TIME = tl.constexpr(4), tl.constexpr(64), tl.constexpr(16)
"""Groups of a tile: where the elements of a group lie side by side, and where those of neighbouring groups do; and groups whose
norms one program computes."""


@triton.jit
def find(table, owners, program, FIRST: tl.constexpr):
    """Finds the row of a program's tensor, and its number among the programs of that tensor."""
    row = table + tl.load(owners + program).to(tl.int64) * WIDTH
    return row, program - tl.load(row + FIRST)


@triton.jit
def spread(x, AXIS: tl.constexpr):
    """Lays a vector along one of two axes."""
    return tl.expand_dims(x, 1 - AXIS)


@triton.jit(do_not_specialize=["first_program"])
def group_squares(
    table,
    owners,
    partials,
    first_program: tl.int64,
    ACROSS: tl.constexpr,
    STORAGE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Forms the square sums of a piece of ACROSS groups."""
    AXIS: tl.constexpr = 1 if ACROSS == COLUMNS else 0  # of groups: neighbours in memory are on the last one
    SPAN: tl.constexpr = BLOCK // ACROSS
    row, tile = find(table, owners, first_program + tl.program_id(0), FIRST_TILE)
    weight = tl.load(row + WEIGHT).to(tl.pointer_type(STORAGE))
    groups, inner, size = tl.load(row + GROUPS), tl.load(row + INNER), tl.load(row + SIZE)
    pieces = tl.load(row + PIECES)
    piece = tile % pieces
    group = tile // pieces * ACROSS + tl.arange(0, ACROSS)
    length: tl.constexpr = CHUNK // ACROSS
    begin = piece * length
    lanes = tl.zeros([SPAN, ACROSS] if AXIS == 1 else [ACROSS, SPAN], tl.float64)
    for start in range(begin, tl.minimum(begin + length, size), SPAN):
        k = start + tl.arange(0, SPAN)
        mask = spread(group < groups, AXIS) & spread(k < size, 1 - AXIS)
        offsets = (spread(k // inner, 1 - AXIS) * groups + spread(group, AXIS)) * inner + spread(k % inner, 1 - AXIS)
        x = widen(tl.load(weight + offsets, mask=mask, other=0.0), COMPUTE).to(tl.float64)
        lanes += x * x
    squares = tl.sum(lanes, axis=1 - AXIS)
    tl.store(partials + tl.load(row + PARTIALS) + piece * groups + group, squares, mask=group < groups)


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
    STORAGE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Computes ``upstream * scale / norm * w``; 0 for a group that is zero, or where the factor before the norm is."""
    row, chunk = find(table, owners, first_program + tl.program_id(0), FIRST_CHUNK)
    weight = tl.load(row + WEIGHT).to(tl.pointer_type(STORAGE))
    out = tl.load(row + OUT).to(tl.pointer_type(STORAGE))
    norms = tl.load(row + NORMS).to(tl.pointer_type(tl.float64))
    numel, groups, inner = tl.load(row + NUMEL), tl.load(row + GROUPS), tl.load(row + INNER)
    scale = tl.load(upstream).to(tl.float64) * tl.load(row + SCALE).to(tl.float64, bitcast=True)
    begin = chunk * CHUNK
    for start in range(begin, tl.minimum(begin + CHUNK, numel), BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        mask = offsets < numel
        norm = tl.load(norms + offsets // inner % groups, mask=mask, other=1.0)
        factor = tl.where(scale == 0, 0.0, tl.where(norm == 0, 0.0, scale / norm)).to(COMPUTE)
        w = widen(tl.load(weight + offsets, mask=mask, other=0.0), COMPUTE)
        tl.store(out + offsets, narrow(factor * w, STORAGE), mask=mask)
