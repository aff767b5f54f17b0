"""Sums in a fixed order: per lane of a block over the blocks of a chunk, over lanes, over chunks. No atomics.

All in float64: exact enough at every length, and wide enough that no square of a float32 overflows. With PAIRS, the sums of a chunk
are pairs of float32 instead, where these are right. Nothing depends on how many programs run at a time, so equal input gives equal bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from regkernels.backends.triton.kernels import chunks, pairs
from regkernels.backends.triton.kernels.columns import SUMS
from regkernels.backends.triton.kernels.dtypes import widen


class Lanes(NamedTuple):
    """Holds one number per vector of a block and sum, in the order of `regkernels.table.segments.SUMS`."""

    absolute: Any
    square: Any
    nonzeros: Any
    gradient: Any


class Totals(NamedTuple):
    """Holds the sums of a chunk, in the order of `Lanes`."""

    absolute: Any
    square: Any
    nonzeros: Any
    gradient: Any


@triton.jit
def no_lanes(BLOCK: tl.constexpr, VECTOR: tl.constexpr, PAIRS: tl.constexpr = False):
    if PAIRS:
        return pairs.no_pairs(BLOCK, VECTOR)
    else:
        zeros = tl.zeros([BLOCK // VECTOR], tl.float64)
        return Lanes(zeros, zeros, tl.zeros([BLOCK // VECTOR], tl.int32), zeros)


@triton.jit
def add_vectors(x, VECTOR: tl.constexpr):
    """Adds elements that one thread holds side by side there and then: a lane for each would take most registers."""
    return tl.sum(tl.reshape(x, [x.shape[0] // VECTOR, VECTOR]), axis=1)


@triton.jit
def add_weights(lanes, w, VECTOR: tl.constexpr):
    if lanes.square.dtype == tl.float32:
        return pairs.add_weights(lanes, w, VECTOR)
    else:
        x = tl.abs(w).to(tl.float64)  # in this order w is converted once
        return Lanes(
            lanes.absolute + add_vectors(x, VECTOR),
            lanes.square + add_vectors(x * x, VECTOR),
            lanes.nonzeros + add_vectors((x != 0).to(tl.int32), VECTOR),
            lanes.gradient,
        )


@triton.jit
def add_gradients(lanes, g, VECTOR: tl.constexpr):
    if lanes.square.dtype == tl.float32:
        return pairs.add_gradients(lanes, g, VECTOR)
    else:
        x = g.to(tl.float64)
        return Lanes(lanes.absolute, lanes.square, lanes.nonzeros, lanes.gradient + add_vectors(x * x, VECTOR))


@triton.jit
def add_lanes(lanes):
    if lanes.square.dtype == tl.float32:
        return Totals(
            pairs.add_lanes(lanes.absolute, lanes.absolute_rest),
            pairs.add_lanes(lanes.square, lanes.square_rest),
            tl.sum(lanes.nonzeros),
            pairs.add_lanes(lanes.gradient, lanes.gradient_rest),
        )
    else:
        return Totals(tl.sum(lanes.absolute), tl.sum(lanes.square), tl.sum(lanes.nonzeros), tl.sum(lanes.gradient))


@triton.jit
def add_blocks(
    lanes,
    chunk,
    begin,
    end,
    COLUMN: tl.constexpr,
    WANTED: tl.constexpr,
    STORAGE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
    PIPELINE: tl.constexpr = 1,
):
    """Sums over the blocks ``begin`` to ``end`` of a chunk."""
    values = chunks.pointer(chunk, COLUMN, STORAGE, WIDE)
    for block in tl.range(begin, end, num_stages=PIPELINE):
        offsets, mask = chunks.elements(chunk, block, BLOCK)
        x = widen(chunks.load(values, offsets, mask, WIDE), COMPUTE)
        if WANTED == "square":
            lanes = add_gradients(lanes, x, chunks.vector(STORAGE))
        else:
            lanes = add_weights(lanes, x, chunks.vector(STORAGE))
    return lanes


@triton.jit
def hold(lanes, found, WANTED: tl.constexpr):
    """Tells whether the sums that are wanted are right, of which ``found`` was made of pairs."""
    if WANTED == "square":
        return pairs.holds_of_squares(found.gradient, tl.sum(lanes.magnitude))
    elif WANTED == "absolute":
        return pairs.holds(found.absolute)
    else:
        return pairs.holds(found.absolute) & pairs.holds_of_squares(found.square, found.absolute)


@triton.jit(do_not_specialize=["first_chunk", "stride"])
def reduce(
    segments,
    owners,
    partials,
    first_chunk: tl.int64,
    stride: tl.int64,
    COLUMN: tl.constexpr,
    WANTED: tl.constexpr,
    PAIRS: tl.constexpr,
    PIPELINE: tl.constexpr,
    STORAGE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums, per chunk of what COLUMN points to, into ``partials`` (sums, stride): |x|, x^2, or both in this order, as is WANTED."""
    chunk = chunks.find(segments, owners, first_chunk)
    full, blocks = chunks.count_blocks(chunk, BLOCK)
    lanes = no_lanes(BLOCK, chunks.vector(STORAGE), PAIRS)
    lanes = add_blocks(lanes, chunk, 0, full, COLUMN, WANTED, STORAGE, COMPUTE, BLOCK, True, PIPELINE)
    lanes = add_blocks(lanes, chunk, full, blocks, COLUMN, WANTED, STORAGE, COMPUTE, BLOCK, False)
    found = add_lanes(lanes)
    if PAIRS:  # noqa: SIM102  (one condition is known to the compiler, the other to the device)
        if not hold(lanes, found, WANTED):
            anew = no_lanes(BLOCK, chunks.vector(STORAGE))
            anew = add_blocks(anew, chunk, 0, blocks, COLUMN, WANTED, STORAGE, COMPUTE, BLOCK, False)
            found = add_lanes(anew)
    if WANTED == "square":
        tl.store(partials + chunk.index, found.gradient)
    else:
        tl.store(partials + chunk.index, found.absolute)
        if WANTED == "both":
            tl.store(partials + stride + chunk.index, found.square)


@triton.jit
def add_partials(lanes, partials, begin, end, BLOCK: tl.constexpr):
    for start in range(begin, end, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        lanes += tl.load(partials + offsets, mask=offsets < end, other=0.0)
    return lanes


@triton.jit(do_not_specialize=["stride", "count"])
def add_runs(partials, of_runs, stride: tl.int64, count: tl.int64, runs, BLOCK: tl.constexpr):
    """Adds up a run of one of the sums: ``of_runs`` (sums, count) from ``partials`` (sums, stride). ``runs`` (count, 2) names the first
    chunk, and the one after the last, of each."""
    run, which = tl.program_id(0), tl.program_id(1)
    begin, end = tl.load(runs + 2 * run), tl.load(runs + 2 * run + 1)
    lanes = add_partials(tl.zeros([BLOCK], tl.float64), partials + which * stride, begin, end, BLOCK)
    tl.store(of_runs + which * count + run, tl.sum(lanes))


@triton.jit(do_not_specialize=["stride", "launches"])
def add_totals(partials, totals, stride: tl.int64, ranges, launches: tl.int32, BLOCK: tl.constexpr):
    """Adds up one of the sums of one total: ``totals`` (totals, sums) from ``partials`` (sums, stride).

    ``ranges`` (totals, launches, 2) names the first chunk, or run, and the one after the last, of a total within each launch.
    """
    total, which = tl.program_id(0), tl.program_id(1)
    lanes = tl.zeros([BLOCK], tl.float64)
    for launch in range(launches):
        at = ranges + (total * launches + launch) * 2
        lanes = add_partials(lanes, partials + which * stride, tl.load(at), tl.load(at + 1), BLOCK)
    tl.store(totals + total * SUMS + which, tl.sum(lanes))


@triton.jit(do_not_specialize=["stride", "l1", "l2"])
def penalty(partials, out, stride: tl.int64, l1: tl.float64, l2: tl.float64, BLOCK: tl.constexpr):
    """Computes ``l1 * sum |w| + l2 * sum w^2``; a strength of 0 switches its term off, also where the sum is infinite."""
    absolute = tl.zeros([BLOCK], tl.float64)
    square = absolute
    squares = partials + tl.where(l1 != 0, stride, 0)  # sums that are not wanted have not been formed
    for start in range(0, stride, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        absolute += tl.load(partials + offsets, mask=(offsets < stride) & (l1 != 0), other=0.0)
        square += tl.load(squares + offsets, mask=(offsets < stride) & (l2 != 0), other=0.0)
    total = tl.where(l1 != 0, l1 * tl.sum(absolute), 0.0) + tl.where(l2 != 0, l2 * tl.sum(square), 0.0)
    tl.store(out, total)


@triton.jit(do_not_specialize=["stride"])
def square_sum(partials, out, stride: tl.int64, BLOCK: tl.constexpr):
    """Adds up the squares of all gradients."""
    lanes = add_partials(tl.zeros([BLOCK], tl.float64), partials, 0, stride, BLOCK)
    tl.store(out, tl.sum(lanes))
