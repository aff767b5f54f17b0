"""Does what is between the passes over groups: means, what their norms make of them, counts; and hands that on between launches."""

from __future__ import annotations

import triton
import triton.language as tl

from regkernels.backends.triton.kernels.columns import (
    ABSOLUTE,
    GRADIENT_SQUARE,
    GROUP_BY_SIZE,
    GROUP_STRENGTH,
    LARGEST_SHRINK,
    NONZEROS,
    PARAMETERS,
    SQUARE,
    ZERO_GROUPS,
)
from regkernels.backends.triton.kernels.group_shrinkage import Squares, shrinkage

SHARED, TAKEN, FACTOR, DIVISOR = (tl.constexpr(slot) for slot in range(3, 7))
SLOTS = 7
"""Numbers of a group, and of each of its pieces, in memory between launches: first the sums of a pass."""


@triton.jit
def of_norm(strip, rows, row, PER_ELEMENT: tl.constexpr, COMPUTE: tl.constexpr):
    """Loads what in a row of hyper-parameters depends on the size of groups, too, rounded once: strength and largest shrink."""
    size = (strip.outer * strip.inner).to(tl.float64)
    strength = tl.load(rows + row * PARAMETERS + GROUP_STRENGTH)
    by_size = tl.load(rows + row * PARAMETERS + GROUP_BY_SIZE) != 0
    strength = (strength * tl.where(by_size, tl.sqrt(size), 1.0)).to(COMPUTE)
    largest_shrink = tl.load(rows + row * PARAMETERS + LARGEST_SHRINK)
    largest_shrink = (largest_shrink * tl.sqrt(size)).to(COMPUTE)
    if not PER_ELEMENT:
        largest_shrink = tl.full([], float("inf"), COMPUTE)
    return strength, largest_shrink


@triton.jit
def shrinkage_of(
    squares,
    shared,
    strength,
    largest_shrink,
    h,
    RULE: tl.constexpr,
    STATES: tl.constexpr,
    PER_ELEMENT: tl.constexpr,
):
    """Computes what the step of groups makes of them, from the sums of their squares; all (1, STRIP)."""
    no_states = ()
    for _k in tl.static_range(STATES):
        no_states = no_states + (tl.zeros_like(shared),)
    squares = Squares(squares.left[None, :], squares.taken[None, :], squares.both[None, :])
    return shrinkage(squares, shared, no_states, strength, largest_shrink, h, RULE, PER_ELEMENT)


@triton.jit
def mean_of(total, strip, COMPUTE: tl.constexpr):
    return (total / (strip.outer * strip.inner).to(tl.float64)).to(COMPUTE)[None, :]


@triton.jit
def store_sums(lanes, partials, at, stride):
    """Stores what was counted of a program's elements."""
    tl.store(partials + ABSOLUTE * stride + at, tl.sum(lanes.absolute))
    tl.store(partials + SQUARE * stride + at, tl.sum(lanes.square))
    tl.store(partials + NONZEROS * stride + at, tl.sum(lanes.nonzeros).to(tl.float64))
    tl.store(partials + GRADIENT_SQUARE * stride + at, tl.sum(lanes.gradient))


@triton.jit
def store_zero_groups(of_groups, strip, partials, at, stride, STRIP: tl.constexpr):
    zero = (of_groups == 0) & (strip.first + tl.arange(0, STRIP) < strip.groups)
    tl.store(partials + ZERO_GROUPS * stride + at, tl.sum(zero.to(tl.int32)).to(tl.float64))


@triton.jit
def slot(scratch, at, programs, SLOT: tl.constexpr, STRIP: tl.constexpr):
    """Finds a number of each group of a program's strip in the memory between launches."""
    return scratch + (SLOT * programs + at) * STRIP + tl.arange(0, STRIP)


@triton.jit
def sum_of_pieces(scratch, at, programs, pieces, SLOT: tl.constexpr, STRIP: tl.constexpr, TILE: tl.constexpr):
    """Adds up what the pieces of a strip, of which the first is at ``at``, have left in a slot."""
    lanes = tl.zeros([TILE, STRIP], tl.float64)
    for begin in range(0, pieces, TILE):
        piece = begin + tl.arange(0, TILE)
        offsets = (SLOT * programs + at + piece)[:, None] * STRIP + tl.arange(0, STRIP)[None, :]
        lanes += tl.load(scratch + offsets, mask=(piece < pieces)[:, None], other=0.0)
    return tl.sum(lanes, axis=0)


@triton.jit
def load_numbers(scratch, at, programs, SLOT: tl.constexpr, STRIP: tl.constexpr, COMPUTE: tl.constexpr):
    """Loads a number of each group of the strip whose first program is ``at``, (1, STRIP)."""
    return tl.load(slot(scratch, at, programs, SLOT, STRIP)).to(COMPUTE)[None, :]


@triton.jit
def store_numbers(numbers, scratch, at, programs, SLOT: tl.constexpr, STRIP: tl.constexpr):
    tl.store(slot(scratch, at, programs, SLOT, STRIP), tl.reshape(numbers.to(tl.float64), [STRIP]))


@triton.jit
def share(scratch, at, programs, strip, STRIP: tl.constexpr, TILE: tl.constexpr, COMPUTE: tl.constexpr):
    """Hands on the means of second moments; the first program of a strip does, for all of them."""
    if strip.piece == 0:
        total = sum_of_pieces(scratch, at, programs, strip.pieces, 0, STRIP, TILE)
        store_numbers(mean_of(total, strip, COMPUTE), scratch, at, programs, SHARED, STRIP)


@triton.jit
def shrink_groups(
    shared,
    scratch,
    at,
    programs,
    strip,
    rows,
    row,
    h,
    RULE: tl.constexpr,
    STATES: tl.constexpr,
    PER_ELEMENT: tl.constexpr,
    STRIP: tl.constexpr,
    TILE: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Hands on what the step makes of groups."""
    if strip.piece == 0:
        squares = Squares(
            sum_of_pieces(scratch, at, programs, strip.pieces, 0, STRIP, TILE),
            sum_of_pieces(scratch, at, programs, strip.pieces, 1, STRIP, TILE),
            sum_of_pieces(scratch, at, programs, strip.pieces, 2, STRIP, TILE),
        )
        strength, largest_shrink = of_norm(strip, rows, row, PER_ELEMENT, COMPUTE)
        found = shrinkage_of(squares, shared, strength, largest_shrink, h, RULE, STATES, PER_ELEMENT)
        for k in tl.static_range(3):
            store_numbers(found[k], scratch, at, programs, TAKEN + k, STRIP)
