"""Makes the step of groups of elements, which have one second moment and one norm each; see regkernels/reference/groups.py.

A program has a strip of groups, all of each. It goes over them three times: for the second moments, for the norms of where
the step leads to, and once more for the step, whose outcome is shrunk and stored. Nothing is written before, so no format
needs a copy; where its groups fit into a cache, memory is read once. A group of millions of elements takes one program as
long as that takes to read them; other groups and segments meanwhile have the rest of the device.

Sums are in float64 and in a fixed order, which is not that of the kernels on CPU.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from regkernels.backends.triton.kernels import chunks, rounding
from regkernels.backends.triton.kernels.columns import (
    ABSOLUTE,
    FIRST,
    GAP,
    GRADIENT,
    GRADIENT_SQUARE,
    GROUP_BY_SIZE,
    GROUP_STRENGTH,
    GROUPS,
    INNER,
    KEPT,
    LARGEST_SHRINK,
    NONZEROS,
    NUMEL,
    PARAMETERS,
    PLACE,
    ROW,
    SEED,
    SKIP,
    SQUARE,
    STATE0,
    STEP,
    STREAM,
    WEIGHT,
    WIDTH,
    ZERO_GROUPS,
)
from regkernels.backends.triton.kernels.dtypes import narrow, widen
from regkernels.backends.triton.kernels.group_shrinkage import Squares, add_squares, shrink, shrinkage, thresholded
from regkernels.backends.triton.kernels.shrink import opposed
from regkernels.backends.triton.kernels.step import gradient_of, kept_type, load_row, load_weights


@triton.jit
def offsets_of(place, o, i, ROWS_AT_ONCE: tl.constexpr, STRIP: tl.constexpr):
    """Finds where the elements of a tile are, int64 (ROWS_AT_ONCE, STRIP), and which of them there are.

    ``place`` is `place_of`; the tile begins at element ``i`` of the run ``o`` of each group.
    """
    outer, groups, inner, first, run, element = place
    group = first + tl.arange(0, STRIP)
    runs, elements = o + run, i + element
    offsets = (runs * groups * inner + elements)[:, None] + (group * inner)[None, :]
    whole = tl.maximum(ROWS_AT_ONCE // inner, 1)
    return offsets, ((run < whole) & (runs < outer) & (elements < inner))[:, None] & (group < groups)[None, :]


@triton.jit
def place_of(segment, first, ROWS_AT_ONCE: tl.constexpr):
    """Finds the layout, the first group of a program, and of which run and element in it a row of a tile is: a piece of one run, or
    several short ones."""
    groups = tl.load(segment + GROUPS)
    inner = tl.load(segment + INNER)
    outer = tl.load(segment + NUMEL) // (groups * inner)
    row = tl.arange(0, ROWS_AT_ONCE).to(tl.int64)
    return outer, groups, inner, first, row // inner, row % inner


@triton.jit
def apart_of(segment, place, o):
    """Returns what is to be added to `offsets_of` for places in the whole parameter, int64 (ROWS_AT_ONCE, 1): the elements of other
    parts that lie before."""
    run = place[4]
    return (tl.load(segment + PLACE) + (o + run) * tl.load(segment + GAP))[:, None]


class Pointers(NamedTuple):
    """Holds the addresses of the first element of a segment."""

    weight: Any
    gradient: Any
    kept: Any
    states: Any


@triton.jit
def load_tile(
    pointers,
    offsets,
    mask,
    STATES: tl.constexpr,
    STORAGE: tl.constexpr,
    COMPUTE: tl.constexpr,
    ROUNDING: tl.constexpr,
):
    """Loads the weights, as they are stored and as they are, their gradients and states."""
    stored, w = load_weights(pointers.weight, pointers.kept, offsets, mask, STORAGE, COMPUTE, ROUNDING, False)
    g = widen(tl.load(pointers.gradient + offsets, mask=mask, other=0.0), COMPUTE)
    return stored, w, g, chunks.load_each(pointers.states, offsets, mask, STATES, COMPUTE, False)


@triton.jit
def proposal(w, g, states, shared, h, OBSERVE: tl.constexpr, RULE: tl.constexpr, PER_ELEMENT: tl.constexpr):
    """Makes steps 2 to 8 of the specification, without the groups' part of the last: what a soft-threshold takes and leaves."""
    g = gradient_of(w, g, h)
    _, states = OBSERVE(g, states, h)
    move, s, states = RULE(g, shared, states, h)
    decayed = w * h.decay
    decayed = tl.where(h.cautious != 0, tl.where(opposed(move, w), w, decayed), decayed)
    t = h.threshold
    if PER_ELEMENT:
        t = tl.where(h.threshold_per_step != 0, h.threshold_per_step * s, t)
    e, x = thresholded(decayed - move, t, h)
    return e, x, states


@triton.jit(do_not_specialize=["first_chunk", "stride"])
def update_groups(
    segments,
    owners,
    rows,
    partials,
    first_chunk: tl.int64,
    stride: tl.int64,
    OBSERVE: tl.constexpr,
    RULE: tl.constexpr,
    STATES: tl.constexpr,
    PER_ELEMENT: tl.constexpr,
    STATE: tl.constexpr,
    ROUNDING: tl.constexpr,
    STATS: tl.constexpr,
    MAY_SKIP: tl.constexpr,
    STRIP: tl.constexpr,
    STORAGE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Updates STRIP groups of a segment, in tiles of BLOCK elements; with STATS their sums, into ``partials`` (sums, stride)."""
    KEEPS: tl.constexpr = ROUNDING == "remainder" or ROUNDING == "master"
    TILE: tl.constexpr = BLOCK // STRIP
    chunk = first_chunk + tl.program_id(0)
    segment = segments + tl.load(owners + chunk).to(tl.int64) * WIDTH
    row = tl.load(segment + ROW)
    h = load_row(rows, row, COMPUTE)
    seed = tl.load(rows + row * PARAMETERS + SEED).to(tl.int64).to(tl.uint32)
    step = tl.load(rows + row * PARAMETERS + STEP).to(tl.int64).to(tl.uint32)
    stream = tl.load(segment + STREAM).to(tl.uint32)
    weight = tl.load(segment + WEIGHT).to(tl.pointer_type(STORAGE))
    gradient = tl.load(segment + GRADIENT).to(tl.pointer_type(STORAGE))
    kept = tl.load(segment + KEPT).to(tl.pointer_type(kept_type(ROUNDING)))
    state_pointers = ()
    for k in tl.static_range(STATES):
        state_pointers = state_pointers + (tl.load(segment + STATE0 + k).to(tl.pointer_type(STATE)),)
    pointers = Pointers(weight, gradient, kept, state_pointers)

    place = place_of(segment, (chunk - tl.load(segment + FIRST)) * STRIP, TILE)
    outer, groups, inner, first_group, _of_run, _of_element = place
    at_once = tl.maximum(TILE // inner, 1)
    size = (outer * inner).to(tl.float64)
    updated = outer
    if MAY_SKIP:
        updated = tl.where(tl.load(rows + row * PARAMETERS + SKIP) != 0, 0, outer)

    shared = tl.zeros([1, STRIP], COMPUTE)
    if PER_ELEMENT:
        total = tl.zeros([TILE, STRIP], tl.float64)
        for o in range(0, updated, at_once):
            for i in range(0, inner, TILE):
                offsets, mask = offsets_of(place, o, i, TILE, STRIP)
                stored, w, g, states = load_tile(pointers, offsets, mask, STATES, STORAGE, COMPUTE, ROUNDING)
                v, states = OBSERVE(gradient_of(w, g, h), states, h)
                total += tl.where(mask, v.to(tl.float64), 0.0)
        shared = (tl.sum(total, axis=0) / size).to(COMPUTE)[None, :]

    none = tl.zeros([TILE, STRIP], tl.float64)
    squares = Squares(none, none, none)
    for o in range(0, updated, at_once):
        for i in range(0, inner, TILE):
            offsets, mask = offsets_of(place, o, i, TILE, STRIP)
            stored, w, g, states = load_tile(pointers, offsets, mask, STATES, STORAGE, COMPUTE, ROUNDING)
            e, x, states = proposal(w, g, states, shared, h, OBSERVE, RULE, PER_ELEMENT)
            squares = add_squares(squares, e, x, mask)
    squares = Squares(
        tl.sum(squares.left, axis=0)[None, :],
        tl.sum(squares.taken, axis=0)[None, :],
        tl.sum(squares.both, axis=0)[None, :],
    )
    strength = tl.load(rows + row * PARAMETERS + GROUP_STRENGTH)
    by_size = tl.load(rows + row * PARAMETERS + GROUP_BY_SIZE) != 0
    strength = (strength * tl.where(by_size, tl.sqrt(size), 1.0)).to(COMPUTE)
    largest_shrink = tl.load(rows + row * PARAMETERS + LARGEST_SHRINK)
    largest_shrink = (largest_shrink * tl.sqrt(size)).to(COMPUTE)
    if not PER_ELEMENT:
        largest_shrink = tl.full([], float("inf"), COMPUTE)
    no_states = ()
    for _k in tl.static_range(STATES):
        no_states = no_states + (tl.zeros_like(shared),)
    of_taken, factor, divisor = shrinkage(squares, shared, no_states, strength, largest_shrink, h, RULE, PER_ELEMENT)

    absolute = tl.zeros([TILE, STRIP], tl.float64)
    square = absolute
    gradient_square = absolute
    nonzeros = tl.zeros([TILE, STRIP], tl.int32)
    for o in range(0, updated, at_once):
        for i in range(0, inner, TILE):
            offsets, mask = offsets_of(place, o, i, TILE, STRIP)
            stored, w, g, states = load_tile(pointers, offsets, mask, STATES, STORAGE, COMPUTE, ROUNDING)
            e, x, states = proposal(w, g, states, shared, h, OBSERVE, RULE, PER_ELEMENT)
            z = shrink(e, x, of_taken, factor, divisor)
            if ROUNDING == "stochastic":
                random = rounding.random_at(offsets + apart_of(segment, place, o), seed, stream, step, 0)
                new = rounding.round_stochastically(z, random, STORAGE)
            elif ROUNDING == "remainder":
                new, rest = rounding.split(z)
            else:
                new = narrow(z, STORAGE)
                rest = z
            if h.lr != 0:
                tl.store(weight + offsets, new, mask=mask)
                if KEEPS:
                    tl.store(kept + offsets, rest, mask=mask)
            for k in tl.static_range(STATES):
                state = states[k]
                if STATE != COMPUTE:
                    random = rounding.random_at(offsets + apart_of(segment, place, o), seed, stream, step, k + 1)
                    state = rounding.round_stochastically(state, random, STATE)
                tl.store(state_pointers[k] + offsets, state, mask=mask)
            if STATS:
                new = tl.where(h.lr != 0, widen(new, COMPUTE), widen(stored, COMPUTE))
                x = tl.where(mask, new, 0.0).to(tl.float64)
                absolute += tl.abs(x)
                square += x * x
                nonzeros += (x != 0).to(tl.int32)
                gradient_square += g.to(tl.float64) * g.to(tl.float64)
    if STATS:
        if MAY_SKIP:
            for o in range(updated, outer, at_once):
                for i in range(0, inner, TILE):
                    offsets, mask = offsets_of(place, o, i, TILE, STRIP)
                    x = widen(tl.load(weight + offsets, mask=mask, other=0.0), COMPUTE).to(tl.float64)
                    g = widen(tl.load(gradient + offsets, mask=mask, other=0.0), COMPUTE).to(tl.float64)
                    absolute += tl.abs(x)
                    square += x * x
                    nonzeros += (x != 0).to(tl.int32)
                    gradient_square += g * g
        of_groups = tl.sum(nonzeros.to(tl.int64), axis=0)
        zero = (of_groups == 0) & (first_group + tl.arange(0, STRIP) < groups)
        tl.store(partials + ABSOLUTE * stride + chunk, tl.sum(absolute))
        tl.store(partials + SQUARE * stride + chunk, tl.sum(square))
        tl.store(partials + NONZEROS * stride + chunk, tl.sum(of_groups).to(tl.float64))
        tl.store(partials + GRADIENT_SQUARE * stride + chunk, tl.sum(gradient_square))
        tl.store(partials + ZERO_GROUPS * stride + chunk, tl.sum(zero.to(tl.int32)).to(tl.float64))
