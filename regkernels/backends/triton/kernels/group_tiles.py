"""Finds and moves the elements of groups in tiles (elements, groups).

A program has a strip of groups. Elements of one lie side by side in memory, in runs (rows), or those of neighbouring groups do
(columns). WIDE says that 16 bytes of a tile do: the host has looked at addresses and sizes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from regkernels.backends.triton.kernels import chunks, rounding, sums
from regkernels.backends.triton.kernels.columns import (
    GAP,
    GRADIENT,
    GROUPS,
    INNER,
    KEPT,
    NUMEL,
    PLACE,
    STATE0,
    STREAM,
    WEIGHT,
)
from regkernels.backends.triton.kernels.dtypes import narrow, widen
from regkernels.backends.triton.kernels.step import kept_type, load_weights

AT_ONCE = tl.constexpr(65536)
"""Elements of a program at most. Groups that have more are shared out to several, piece by piece."""


class Strip(NamedTuple):
    """Holds the layout of a segment, the first group of a program, which piece it has of its groups and of how many, and of which run
    and element in it a row of a tile is: a part of one run, or several short ones."""

    outer: Any
    groups: Any
    inner: Any
    first: Any
    piece: Any
    pieces: Any
    begin_run: Any
    end_run: Any
    begin: Any  # of the elements of a run
    end: Any
    run: Any
    element: Any


@triton.jit
def strip_of(segment, index, TILE: tl.constexpr, STRIP: tl.constexpr, ACROSS: tl.constexpr, WIDE: tl.constexpr):
    """Finds what the program with this number in its segment has. ACROSS: neighbours in memory are of different groups."""
    length = tl.full([], AT_ONCE // STRIP, tl.int64)
    groups = tl.load(segment + GROUPS)
    inner = tl.load(segment + INNER)
    outer = tl.load(segment + NUMEL) // (groups * inner)
    row = tl.arange(0, TILE).to(tl.int64)
    rows = tl.maximum(length // inner, 1)
    cuts = tl.cdiv(inner, length)
    pieces = tl.cdiv(outer, rows) * cuts
    piece = index % pieces
    begin_run = piece // cuts * rows
    begin = piece % cuts * length
    end_run = tl.minimum(begin_run + rows, outer)
    end = tl.minimum(begin + length, inner)
    run, element = row // inner, row % inner
    if WIDE and ACROSS:  # then a run has one element
        groups = tl.multiple_of(groups, 8)
        inner = tl.full([], 1, tl.int64)
        run, element = row, row * 0
    elif WIDE:
        inner, end = tl.multiple_of(inner, 8), tl.multiple_of(end, 8)
        run, element = row // inner, row % inner
    first = index // pieces * STRIP
    return Strip(outer, groups, inner, first, piece, pieces, begin_run, end_run, begin, end, run, element)


@triton.jit
def runs_at_once(strip, TILE: tl.constexpr):
    """Counts the whole runs of a group that a tile has; 1 where it has a part of one."""
    return tl.maximum(TILE // strip.inner, 1)


@triton.jit
def offsets_of(strip, o, i, TILE: tl.constexpr, STRIP: tl.constexpr):
    """Finds where the elements of a tile are, int64 (TILE, STRIP), and which of them there are. It begins at element ``i`` of the run
    ``o`` of each group."""
    group = strip.first + tl.arange(0, STRIP)
    runs, elements = o + strip.run, i + strip.element
    offsets = (runs * strip.groups * strip.inner + elements)[:, None] + (group * strip.inner)[None, :]
    there = (strip.run < runs_at_once(strip, TILE)) & (runs < strip.end_run) & (elements < strip.end)
    return offsets, there[:, None] & (group < strip.groups)[None, :]


@triton.jit
def rows_of(segment, TILE: tl.constexpr, WIDE: tl.constexpr):
    """Finds the layout of rows that a tile holds as a whole."""
    groups = tl.load(segment + GROUPS)
    inner = tl.load(segment + INNER)
    if WIDE:
        inner = tl.multiple_of(inner, 8)
    element = tl.arange(0, TILE)
    run, none = element * 0, inner * 0
    return Strip(none + 1, groups, inner, none, none, none + 1, none, none + 1, none, inner, run, element)


@triton.jit
def offsets_of_rows(strip, first, STRIP: tl.constexpr):
    """Finds where the elements of rows from the ``first`` one on are, and which of them there are."""
    group = tl.arange(0, STRIP)
    within = strip.element[:, None] + (group * strip.inner.to(tl.int32))[None, :]
    mask = (strip.element < strip.inner)[:, None] & (first + group < strip.groups)[None, :]
    return first * strip.inner + within, mask


class Buffers(NamedTuple):
    """Holds the addresses of the first element of a segment in each buffer, and what its random numbers depend on."""

    weight: Any
    gradient: Any
    kept: Any
    states: Any
    seed: Any
    stream: Any
    step: Any
    place: Any
    gap: Any


@triton.jit
def address(segment, COLUMN: tl.constexpr, TYPE: tl.constexpr, WIDE: tl.constexpr):
    found = tl.load(segment + COLUMN).to(tl.pointer_type(TYPE))
    if WIDE:
        found = tl.multiple_of(found, 16)
    return found


@triton.jit
def buffers_of(
    segment,
    seed,
    step,
    STATES: tl.constexpr,
    STORAGE: tl.constexpr,
    STATE: tl.constexpr,
    ROUNDING: tl.constexpr,
    WIDE: tl.constexpr,
):
    states = ()
    for k in tl.static_range(STATES):
        states = states + (address(segment, STATE0 + k, STATE, WIDE),)
    return Buffers(
        address(segment, WEIGHT, STORAGE, WIDE),
        address(segment, GRADIENT, STORAGE, WIDE),
        address(segment, KEPT, kept_type(ROUNDING), WIDE),
        states,
        seed,
        tl.load(segment + STREAM).to(tl.uint32),
        step,
        tl.load(segment + PLACE),
        tl.load(segment + GAP),
    )


@triton.jit
def load_tile(
    buffers,
    offsets,
    mask,
    STATES: tl.constexpr,
    STORAGE: tl.constexpr,
    COMPUTE: tl.constexpr,
    ROUNDING: tl.constexpr,
):
    """Loads the weights, as they are stored and as they are, their gradients and states."""
    stored, w = load_weights(buffers.weight, buffers.kept, offsets, mask, STORAGE, COMPUTE, ROUNDING, False)
    g = widen(tl.load(buffers.gradient + offsets, mask=mask, other=0.0), COMPUTE)
    return stored, w, g, chunks.load_each(buffers.states, offsets, mask, STATES, COMPUTE, False)


@triton.jit
def store_tile(
    buffers,
    strip,
    o,
    offsets,
    mask,
    z,
    states,
    writes_weights,
    STATES: tl.constexpr,
    STORAGE: tl.constexpr,
    COMPUTE: tl.constexpr,
    STATE: tl.constexpr,
    ROUNDING: tl.constexpr,
):
    """Rounds and stores weights and states. Returns the weights as they are stored."""
    # Where elements are in the whole parameter: behind those of other parts.
    places = offsets + (buffers.place + (o + strip.run) * buffers.gap)[:, None]
    rest = z
    if ROUNDING == "stochastic":
        random = rounding.random_at(places, buffers.seed, buffers.stream, buffers.step, 0)
        new = rounding.round_stochastically(z, random, STORAGE)
    elif ROUNDING == "remainder":
        new, rest = rounding.split(z)
    else:
        new = narrow(z, STORAGE)
    if writes_weights:
        tl.store(buffers.weight + offsets, new, mask=mask)
        if ROUNDING == "remainder" or ROUNDING == "master":
            tl.store(buffers.kept + offsets, rest, mask=mask)
    for k in tl.static_range(STATES):
        state = states[k]
        if STATE != COMPUTE:
            random = rounding.random_at(places, buffers.seed, buffers.stream, buffers.step, k + 1)
            state = rounding.round_stochastically(state, random, STATE)
        tl.store(buffers.states[k] + offsets, state, mask=mask)
    return new


@triton.jit
def add_vectors(x, VECTOR: tl.constexpr):
    """Adds elements of a group that one thread holds side by side."""
    return tl.sum(tl.reshape(x, [x.shape[0] // VECTOR, VECTOR, x.shape[1]]), axis=1)


@triton.jit
def add_gradients(lanes, g, VECTOR: tl.constexpr):
    """Adds what is counted of a tile's gradients, `regkernels.backends.triton.kernels.sums.Lanes` with a number for VECTOR of them."""
    g = g.to(tl.float64)
    return sums.Lanes(lanes.absolute, lanes.square, lanes.nonzeros, lanes.gradient + add_vectors(g * g, VECTOR))


@triton.jit
def add_weights(lanes, x, mask, VECTOR: tl.constexpr):
    """Adds what is counted of a tile's weights."""
    x = tl.where(mask, x, 0.0).to(tl.float64)
    return sums.Lanes(
        lanes.absolute + add_vectors(tl.abs(x), VECTOR),
        lanes.square + add_vectors(x * x, VECTOR),
        lanes.nonzeros + add_vectors((x != 0).to(tl.int32), VECTOR),
        lanes.gradient,
    )
