"""Makes the step of groups of elements, which have one second moment and one norm each; see regkernels/reference/groups.py.

A program has a strip of groups. Short ones it reads once, and holds all of them: `update_resident`. Over longer ones it goes three
times: for the second moments, for the norms of where the step leads to, and once more for the step, whose outcome is shrunk and
stored. Nothing is written before, so no format needs a copy. The longest are cut into pieces; each pass over these is a launch, and
between passes partial sums are added up in order: `update_groups` with STAGE, of the names in `STAGES`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from regkernels.backends.triton.kernels.columns import (
    CHUNK,
    FIRST,
    PARAMETERS,
    ROW,
    SEED,
    SKIP,
    STEP,
    WIDTH,
    ZERO_GROUPS,
)
from regkernels.backends.triton.kernels.dtypes import widen
from regkernels.backends.triton.kernels.group_passes import count, no_lanes, observe, proposal, propose, write
from regkernels.backends.triton.kernels.group_shrinkage import products, shrink, sum_squares
from regkernels.backends.triton.kernels.group_stages import (
    DIVISOR,
    FACTOR,
    SHARED,
    TAKEN,
    load_numbers,
    mean_of,
    of_norm,
    share,
    shrink_groups,
    shrinkage_of,
    slot,
    store_sums,
    store_zero_groups,
    sum_of_pieces,
)
from regkernels.backends.triton.kernels.group_tiles import (
    add_gradients,
    add_weights,
    buffers_of,
    load_tile,
    offsets_of_rows,
    rows_of,
    store_tile,
    strip_of,
)
from regkernels.backends.triton.kernels.step import gradient_of, load_row

STAGES = ("observe", "share", "propose", "shrink", "write", "count")
"""The launches over groups that are cut into pieces; "whole" is the one over those that are not."""


@triton.jit
def row_of(segment, rows, COMPUTE: tl.constexpr):
    """Loads the hyper-parameters of a segment, with what only stochastic rounding needs, and whether the step is left out."""
    row = tl.load(segment + ROW)
    seed = tl.load(rows + row * PARAMETERS + SEED).to(tl.int64).to(tl.uint32)
    step = tl.load(rows + row * PARAMETERS + STEP).to(tl.int64).to(tl.uint32)
    skip = tl.load(rows + row * PARAMETERS + SKIP) != 0
    return row, load_row(rows, row, COMPUTE), seed, step, skip


@triton.jit(do_not_specialize=["first_chunk", "stride"])
def update_resident(
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
    WIDE: tl.constexpr,
    PIPELINE: tl.constexpr,
    STORAGE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Updates CHUNK elements of a segment, STRIP rows at a time, which make one tile; with STATS their sums, into ``partials``."""
    TILE: tl.constexpr = BLOCK // STRIP
    VECTOR: tl.constexpr = 4 if TILE >= 32 else 1
    chunk = first_chunk + tl.program_id(0)
    segment = segments + tl.load(owners + chunk).to(tl.int64) * WIDTH
    row, h, seed, step, skip = row_of(segment, rows, COMPUTE)
    begin = (chunk - tl.load(segment + FIRST)) * (CHUNK // BLOCK * STRIP)
    strip = rows_of(segment, TILE, WIDE)
    buffers = buffers_of(segment, seed, step, STATES, STORAGE, STATE, ROUNDING, WIDE)
    strength, largest_shrink = of_norm(strip, rows, row, PER_ELEMENT, COMPUTE)
    moves = h.lr != 0
    if MAY_SKIP:
        moves = moves & (not skip)
    lanes = no_lanes(TILE // VECTOR, STRIP)
    zero_groups = tl.zeros([STRIP], tl.int32)
    end = tl.minimum(begin + CHUNK // BLOCK * STRIP, strip.groups)
    for first in tl.range(begin, end, STRIP, num_stages=PIPELINE):
        offsets, mask = offsets_of_rows(strip, first, STRIP)
        stored, w, g, states = load_tile(buffers, offsets, mask, STATES, STORAGE, COMPUTE, ROUNDING)
        if STATS:
            lanes = add_gradients(lanes, g, VECTOR)
        gradient = gradient_of(w, g, h, STATES < 3)
        shared = tl.zeros([1, STRIP], COMPUTE)
        if PER_ELEMENT:
            v, _ = OBSERVE(gradient, states, h)
            shared = mean_of(tl.sum(tl.where(mask, v.to(tl.float64), 0.0), axis=0), strip, COMPUTE)
        e, x, states = proposal(w, gradient, states, shared, h, OBSERVE, RULE, PER_ELEMENT)
        squares = sum_squares(products(e, x, mask))
        kept, factor, divisor = shrinkage_of(squares, shared, strength, largest_shrink, h, RULE, STATES, PER_ELEMENT)
        z = shrink(e, x, kept, factor, divisor)
        updated = mask
        if MAY_SKIP:
            updated = mask & (strip.run < tl.where(skip, 0, 1))[:, None]
        new = store_tile(
            buffers, strip, 0, offsets, updated, z, states, moves, STATES, STORAGE, COMPUTE, STATE, ROUNDING
        )
        if STATS:
            x = tl.where(moves, widen(new, COMPUTE), widen(stored, COMPUTE))
            lanes = add_weights(lanes, x, mask, VECTOR)
            group = first + tl.arange(0, STRIP)
            nonzeros = tl.sum(tl.where(mask, (x != 0).to(tl.int32), 0), axis=0)
            zero_groups += ((nonzeros == 0) & (group < strip.groups)).to(tl.int32)
    if STATS:
        store_sums(lanes, partials, chunk, stride)
        tl.store(partials + ZERO_GROUPS * stride + chunk, tl.sum(zero_groups).to(tl.float64))


@triton.jit(do_not_specialize=["first_chunk", "stride", "programs"])
def update_groups(
    segments,
    owners,
    rows,
    partials,
    scratch,
    first_chunk: tl.int64,
    stride: tl.int64,
    programs: tl.int64,
    STAGE: tl.constexpr,
    OBSERVE: tl.constexpr,
    RULE: tl.constexpr,
    STATES: tl.constexpr,
    PER_ELEMENT: tl.constexpr,
    STATE: tl.constexpr,
    ROUNDING: tl.constexpr,
    STATS: tl.constexpr,
    MAY_SKIP: tl.constexpr,
    STRIP: tl.constexpr,
    WIDE: tl.constexpr,
    PIPELINE: tl.constexpr,
    STORAGE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Updates STRIP groups of a segment, or a piece of each, in tiles of BLOCK elements; with STATS their sums, into ``partials``.

    ``scratch`` (SLOTS, programs, STRIP) holds what a stage leaves for later ones."""
    WHOLE: tl.constexpr = STAGE == "whole"
    TILE: tl.constexpr = BLOCK // STRIP
    at = tl.program_id(0)
    chunk = first_chunk + at
    segment = segments + tl.load(owners + chunk).to(tl.int64) * WIDTH
    row, h, seed, step, skip = row_of(segment, rows, COMPUTE)
    strip = strip_of(segment, chunk - tl.load(segment + FIRST), TILE, STRIP, STRIP > 1, WIDE)
    buffers = buffers_of(segment, seed, step, STATES, STORAGE, STATE, ROUNDING, WIDE)
    first = at - strip.piece  # of the programs that have these groups
    end_run = strip.end_run
    if MAY_SKIP:  # then there are no runs to update
        end_run = tl.where(skip, strip.begin_run, end_run)

    shared = tl.zeros([1, STRIP], COMPUTE)
    if STAGE == "observe" or (WHOLE and PER_ELEMENT):
        total = observe(buffers, strip, end_run, h, OBSERVE, STATES, STORAGE, COMPUTE, ROUNDING, TILE, STRIP, PIPELINE)
        if WHOLE:
            shared = mean_of(total, strip, COMPUTE)
        else:
            tl.store(slot(scratch, at, programs, 0, STRIP), total)
    elif PER_ELEMENT and (STAGE == "propose" or STAGE == "shrink" or STAGE == "write"):
        shared = load_numbers(scratch, first, programs, SHARED, STRIP, COMPUTE)
    if STAGE == "propose" or WHOLE:
        squares = propose(
            buffers, strip, end_run, shared, h, OBSERVE, RULE, PER_ELEMENT, STATES, STORAGE, COMPUTE, ROUNDING, TILE, STRIP,
            PIPELINE,
        )  # fmt: skip
        if WHOLE:
            strength, largest_shrink = of_norm(strip, rows, row, PER_ELEMENT, COMPUTE)
            found = shrinkage_of(squares, shared, strength, largest_shrink, h, RULE, STATES, PER_ELEMENT)
        else:
            for k in tl.static_range(3):
                tl.store(slot(scratch, at, programs, k, STRIP), squares[k])
    if STAGE == "write":
        found = (
            load_numbers(scratch, first, programs, TAKEN, STRIP, COMPUTE),
            load_numbers(scratch, first, programs, FACTOR, STRIP, COMPUTE),
            load_numbers(scratch, first, programs, DIVISOR, STRIP, COMPUTE),
        )
    if STAGE == "write" or WHOLE:
        lanes = write(
            buffers, strip, end_run, shared, found, h, OBSERVE, RULE, PER_ELEMENT, STATES, STORAGE, COMPUTE, STATE, ROUNDING,
            STATS, TILE, STRIP, PIPELINE,
        )  # fmt: skip
        if STATS:
            if MAY_SKIP:
                lanes = count(lanes, buffers, strip, end_run, STORAGE, COMPUTE, TILE, STRIP)
            store_sums(lanes, partials, chunk, stride)
            of_groups = tl.sum(lanes.nonzeros, axis=0)
            if WHOLE:
                store_zero_groups(of_groups, strip, partials, chunk, stride, STRIP)
            else:
                tl.store(slot(scratch, at, programs, 0, STRIP), of_groups.to(tl.float64))
    if STAGE == "share":
        share(scratch, at, programs, strip, STRIP, TILE, COMPUTE)
    if STAGE == "shrink":
        shrink_groups(
            shared, scratch, at, programs, strip, rows, row, h, RULE, STATES, PER_ELEMENT, STRIP, TILE, COMPUTE
        )  # fmt: skip
    if STAGE == "count":
        of_groups = tl.full([STRIP], 1.0, tl.float64)
        if strip.piece == 0:
            of_groups = sum_of_pieces(scratch, at, programs, strip.pieces, 0, STRIP, TILE)
        store_zero_groups(of_groups, strip, partials, chunk, stride, STRIP)
