"""Goes over the elements of groups: for the second moments, for the norms of where the step leads to, and for the step itself.

PIPELINE: how many tiles are on their way at a time, through shared memory; 1: none.

Sums are in float64 and in a fixed order, which is not that of the kernels on CPU.
"""

from __future__ import annotations

import triton
import triton.language as tl

from regkernels.backends.triton.kernels import sums
from regkernels.backends.triton.kernels.dtypes import widen
from regkernels.backends.triton.kernels.group_shrinkage import (
    Squares,
    add_squares,
    products,
    shrink,
    sum_squares,
    thresholded,
)
from regkernels.backends.triton.kernels.group_tiles import (
    add_gradients,
    add_weights,
    load_tile,
    offsets_of,
    runs_at_once,
    store_tile,
)
from regkernels.backends.triton.kernels.shrink import opposed, threshold_of
from regkernels.backends.triton.kernels.step import gradient_of


@triton.jit
def proposal(w, g, states, shared, h, OBSERVE: tl.constexpr, RULE: tl.constexpr, PER_ELEMENT: tl.constexpr):
    """Makes steps 5 to 8 of the specification, without the groups' part of the last: what a soft-threshold takes and leaves. ``g``: of
    `gradient_of`."""
    _, states = OBSERVE(g, states, h)
    move, s, states = RULE(g, shared, states, h)
    decayed = w * h.decay
    decayed = tl.where(h.cautious != 0, tl.where(opposed(move, w), w, decayed), decayed)
    e, x = thresholded(decayed - move, threshold_of(s, h, PER_ELEMENT), h)
    return e, x, states


@triton.jit
def no_lanes(TILE: tl.constexpr, STRIP: tl.constexpr):
    zeros = tl.zeros([TILE, STRIP], tl.float64)
    return sums.Lanes(zeros, zeros, tl.zeros([TILE, STRIP], tl.int32), zeros)


@triton.jit
def observe(
    buffers,
    strip,
    end_run,
    h,
    OBSERVE: tl.constexpr,
    STATES: tl.constexpr,
    STORAGE: tl.constexpr,
    COMPUTE: tl.constexpr,
    ROUNDING: tl.constexpr,
    TILE: tl.constexpr,
    STRIP: tl.constexpr,
    PIPELINE: tl.constexpr,
):
    """Returns the sums of the second moments, as they will be."""
    total = tl.zeros([TILE, STRIP], tl.float64)
    for o in range(strip.begin_run, end_run, runs_at_once(strip, TILE)):
        for i in tl.range(strip.begin, strip.end, TILE, num_stages=PIPELINE):
            offsets, mask = offsets_of(strip, o, i, TILE, STRIP)
            _stored, w, g, states = load_tile(buffers, offsets, mask, STATES, STORAGE, COMPUTE, ROUNDING)
            v, _ = OBSERVE(gradient_of(w, g, h), states, h)
            total += tl.where(mask, v.to(tl.float64), 0.0)
    return tl.sum(total, axis=0)


@triton.jit
def propose(
    buffers,
    strip,
    end_run,
    shared,
    h,
    OBSERVE: tl.constexpr,
    RULE: tl.constexpr,
    PER_ELEMENT: tl.constexpr,
    STATES: tl.constexpr,
    STORAGE: tl.constexpr,
    COMPUTE: tl.constexpr,
    ROUNDING: tl.constexpr,
    TILE: tl.constexpr,
    STRIP: tl.constexpr,
    PIPELINE: tl.constexpr,
):
    """Returns the sums of squares of where the step leads to."""
    none = tl.zeros([TILE, STRIP], tl.float64)
    squares = Squares(none, none, none)
    for o in range(strip.begin_run, end_run, runs_at_once(strip, TILE)):
        for i in tl.range(strip.begin, strip.end, TILE, num_stages=PIPELINE):
            offsets, mask = offsets_of(strip, o, i, TILE, STRIP)
            _stored, w, g, states = load_tile(buffers, offsets, mask, STATES, STORAGE, COMPUTE, ROUNDING)
            e, x, _ = proposal(w, gradient_of(w, g, h), states, shared, h, OBSERVE, RULE, PER_ELEMENT)
            squares = add_squares(squares, products(e, x, mask))
    return sum_squares(squares)


@triton.jit
def write(
    buffers,
    strip,
    end_run,
    shared,
    shrinkage,
    h,
    OBSERVE: tl.constexpr,
    RULE: tl.constexpr,
    PER_ELEMENT: tl.constexpr,
    STATES: tl.constexpr,
    STORAGE: tl.constexpr,
    COMPUTE: tl.constexpr,
    STATE: tl.constexpr,
    ROUNDING: tl.constexpr,
    STATS: tl.constexpr,
    TILE: tl.constexpr,
    STRIP: tl.constexpr,
    PIPELINE: tl.constexpr,
):
    """Stores what the step makes of the elements, and with STATS counts them."""
    kept, factor, divisor = shrinkage
    lanes = no_lanes(TILE, STRIP)
    for o in range(strip.begin_run, end_run, runs_at_once(strip, TILE)):
        for i in tl.range(strip.begin, strip.end, TILE, num_stages=PIPELINE):
            offsets, mask = offsets_of(strip, o, i, TILE, STRIP)
            stored, w, g, states = load_tile(buffers, offsets, mask, STATES, STORAGE, COMPUTE, ROUNDING)
            if STATS:
                lanes = add_gradients(lanes, g, 1)
            e, x, states = proposal(w, gradient_of(w, g, h), states, shared, h, OBSERVE, RULE, PER_ELEMENT)
            z = shrink(e, x, kept, factor, divisor)
            moves = h.lr != 0
            new = store_tile(
                buffers, strip, o, offsets, mask, z, states, moves, STATES, STORAGE, COMPUTE, STATE, ROUNDING
            )
            if STATS:
                x = tl.where(moves, widen(new, COMPUTE), widen(stored, COMPUTE))
                lanes = add_weights(lanes, x, mask, 1)
    return lanes


@triton.jit
def count(
    lanes,
    buffers,
    strip,
    begin_run,
    STORAGE: tl.constexpr,
    COMPUTE: tl.constexpr,
    TILE: tl.constexpr,
    STRIP: tl.constexpr,
):
    """Counts elements of which nothing is written, from a run on."""
    for o in range(begin_run, strip.end_run, runs_at_once(strip, TILE)):
        for i in range(strip.begin, strip.end, TILE):
            offsets, mask = offsets_of(strip, o, i, TILE, STRIP)
            x = widen(tl.load(buffers.weight + offsets, mask=mask, other=0.0), COMPUTE)
            g = widen(tl.load(buffers.gradient + offsets, mask=mask, other=0.0), COMPUTE)
            lanes = add_weights(add_gradients(lanes, g, 1), x, mask, 1)
    return lanes
