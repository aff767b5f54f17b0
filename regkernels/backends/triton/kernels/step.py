"""Makes the step, a rule between two regularisation steps, for all segments of one rule and dtype in one launch."""

from __future__ import annotations

import triton
import triton.language as tl

from regkernels.backends.triton.kernels import chunks, rounding, sums
from regkernels.backends.triton.kernels.columns import (
    ABSOLUTE,
    GRADIENT,
    GRADIENT_SQUARE,
    KEPT,
    L1_WEIGHT,
    NONZEROS,
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
    ZERO_GROUPS,
)
from regkernels.backends.triton.kernels.dtypes import narrow, widen
from regkernels.backends.triton.kernels.penalised import penalised_step
from regkernels.backends.triton.kernels.shrink import opposed, proximal_step, sign
from regkernels.table.hyper import Hyper


@triton.jit
def load_row(rows, row, TYPE: tl.constexpr):
    """Loads the hyper-parameters in the compute type, each rounded once."""
    values = ()
    for field in tl.static_range(PARAMETERS):
        values = values + (tl.load(rows + row * PARAMETERS + field).to(TYPE),)
    return Hyper(*values)


@triton.jit
def gradient_of(w, g, h, JUMPS: tl.constexpr = True):
    """Makes steps 2 to 4 of the specification. JUMPS: over what is not asked for, where there are registers for it."""
    g = g * h.scale
    if not JUMPS or ((h.coupled_decay != 0) | (h.subgradient != 0)):  # together they cost a fifth of a rule
        g = tl.where(h.coupled_decay != 0, g + h.coupled_decay * w, g)
        g = tl.where(h.subgradient != 0, g + h.subgradient * sign(w), g)
    return g


@triton.jit
def update_element(
    w,
    g,
    states,
    l1_weight,
    h,
    OBSERVE: tl.constexpr,
    RULE: tl.constexpr,
    PER_ELEMENT: tl.constexpr,
    PENALTY: tl.constexpr,
    OPERATOR: tl.constexpr,
    JUMPS: tl.constexpr,
):
    """Makes steps 2 to 11 of the specification. JUMPS: see `gradient_of`."""
    g = gradient_of(w, g, h, JUMPS)
    v, states = OBSERVE(g, states, h)
    move, s, states = RULE(g, v, states, h)
    decayed = w * h.decay
    if PENALTY == "plain":
        return proximal_step(decayed - move, s, h, PER_ELEMENT), states
    else:
        # Of a scalar and a block, the interpreter cannot make an `&`.
        decayed = tl.where(h.cautious != 0, tl.where(opposed(move, w), w, decayed), decayed)
        return (
            penalised_step(decayed - move, s, l1_weight, h, OPERATOR, PER_ELEMENT, PENALTY == "weighted_l1"),
            states,
        )


@triton.constexpr_function
def kept_type(rounding):
    """Returns the type of what a rounding keeps; one, which is not used, also where it keeps nothing."""
    return tl.float32 if rounding == "master" else tl.int16


@triton.jit
def load_weights(
    weight,
    kept,
    offsets,
    mask,
    STORAGE: tl.constexpr,
    COMPUTE: tl.constexpr,
    ROUNDING: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Loads what is stored of weights, and says what they are together with what the rounding keeps."""
    stored = chunks.load(weight, offsets, mask, WIDE)
    if ROUNDING == "remainder":
        w = rounding.join(stored, chunks.load(kept, offsets, mask, WIDE))
    elif ROUNDING == "master":
        w = rounding.prefer_weight(stored, chunks.load(kept, offsets, mask, WIDE), STORAGE)
    else:
        w = widen(stored, COMPUTE)
    return stored, w


@triton.jit
def update_blocks(
    lanes,
    chunk,
    begin,
    end,
    h,
    seed,
    step,
    OBSERVE: tl.constexpr,
    RULE: tl.constexpr,
    STATES: tl.constexpr,
    PER_ELEMENT: tl.constexpr,
    PENALTY: tl.constexpr,
    OPERATOR: tl.constexpr,
    STORAGE: tl.constexpr,
    COMPUTE: tl.constexpr,
    STATE: tl.constexpr,
    ROUNDING: tl.constexpr,
    STATS: tl.constexpr,
    SHIFTED: tl.constexpr,
    PIPELINE: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Updates the blocks ``begin`` to ``end`` of a chunk."""
    KEEPS: tl.constexpr = ROUNDING == "remainder" or ROUNDING == "master"
    weight = chunks.pointer(chunk, WEIGHT, STORAGE, WIDE)
    gradient = chunks.pointer(chunk, GRADIENT, STORAGE, WIDE)
    pointers = chunks.pointers(chunk, STATE0, STATES, STATE, WIDE)
    kept = weight
    if KEEPS:
        kept = chunks.pointer(chunk, KEPT, kept_type(ROUNDING), WIDE)
    if PENALTY == "weighted_l1":
        l1_weights = chunks.pointer(chunk, L1_WEIGHT, COMPUTE, WIDE)
    stream = tl.load(chunk.segment + STREAM).to(tl.uint32)
    place = tl.load(chunk.segment + PLACE) + chunk.start
    # A random counter for each element leaves no registers for addresses in shared memory.
    for block in tl.range(begin, end, num_stages=PIPELINE if WIDE and not SHIFTED else 1):
        offsets, mask = chunks.elements(chunk, block, BLOCK)
        stored, w = load_weights(weight, kept, offsets, mask, STORAGE, COMPUTE, ROUNDING, WIDE)
        g = widen(chunks.load(gradient, offsets, mask, WIDE), COMPUTE)
        states = chunks.load_each(pointers, offsets, mask, STATES, COMPUTE, WIDE)
        l1_weight = w
        if PENALTY == "weighted_l1":
            l1_weight = chunks.load(l1_weights, offsets, mask, WIDE)
        z, states = update_element(
            w, g, states, l1_weight, h, OBSERVE, RULE, PER_ELEMENT, PENALTY, OPERATOR, not SHIFTED
        )
        if ROUNDING == "stochastic":
            # Held throughout, it takes the last registers of these kernels on sm_90; loaded anew, those of others on sm_80.
            place = tl.load(chunk.segment + PLACE) + chunk.start
        first = place + block * BLOCK
        if ROUNDING == "stochastic":
            random = rounding.random_of(first, seed, stream, step, 0, BLOCK, chunks.vector(STORAGE), SHIFTED)
            new = rounding.round_stochastically(z, random, STORAGE)
        elif ROUNDING == "remainder":
            new, rest = rounding.split(z)
        else:
            new = narrow(z, STORAGE)
            rest = z
        if h.lr != 0:
            chunks.store(weight, offsets, new, mask, WIDE)
            if KEEPS:
                chunks.store(kept, offsets, rest, mask, WIDE)
        for k in tl.static_range(STATES):
            state = states[k]
            if STATE != COMPUTE:
                random = rounding.random_of(first, seed, stream, step, k + 1, BLOCK, chunks.vector(STORAGE), SHIFTED)
                state = rounding.round_stochastically(state, random, STATE)
            chunks.store(pointers[k], offsets, state, mask, WIDE)
        if STATS:
            new = tl.where(h.lr != 0, widen(new, COMPUTE), widen(stored, COMPUTE))
            if not WIDE:
                new = tl.where(mask, new, 0.0)  # what a rule makes of the zeros beyond the end need not be 0
            lanes = sums.add_weights(lanes, new, chunks.vector(STORAGE))
            lanes = sums.add_gradients(lanes, g, chunks.vector(STORAGE))
    return lanes


@triton.jit
def add_unchanged(lanes, chunk, end, STORAGE: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr):
    """Forms the sums of a chunk's first ``end`` blocks from what is stored: where the step is left out, or has been made."""
    weight = chunks.pointer(chunk, WEIGHT, STORAGE, False)
    gradient = chunks.pointer(chunk, GRADIENT, STORAGE, False)
    for block in range(0, end):
        offsets, mask = chunks.elements(chunk, block, BLOCK)
        w = widen(chunks.load(weight, offsets, mask, False), COMPUTE)
        g = widen(chunks.load(gradient, offsets, mask, False), COMPUTE)
        lanes = sums.add_weights(lanes, w, chunks.vector(STORAGE))
        lanes = sums.add_gradients(lanes, g, chunks.vector(STORAGE))
    return lanes


@triton.jit(do_not_specialize=["first_chunk", "stride"])
def update(
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
    PENALTY: tl.constexpr,
    OPERATOR: tl.constexpr,
    STATE: tl.constexpr,
    ROUNDING: tl.constexpr,
    STATS: tl.constexpr,
    PAIRS: tl.constexpr,
    MAY_SKIP: tl.constexpr,
    SHIFTED: tl.constexpr,
    PIPELINE: tl.constexpr,
    STORAGE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Updates one chunk of a segment; with STATS its sums, into ``partials`` (sums, stride). SHIFTED: of segments that draw random
    numbers and whose places are no multiples of 8. PIPELINE: how many blocks are on their way at a time, through shared memory; 1: none."""
    chunk = chunks.find(segments, owners, first_chunk)
    row = tl.load(chunk.segment + ROW)
    h = load_row(rows, row, COMPUTE)
    seed = tl.load(rows + row * PARAMETERS + SEED).to(tl.int64).to(tl.uint32)
    step = tl.load(rows + row * PARAMETERS + STEP).to(tl.int64).to(tl.uint32)
    full, blocks = chunks.count_blocks(chunk, BLOCK)
    if MAY_SKIP:  # then there are no blocks: a branch around the stores would take registers that the sums need
        skip = tl.load(rows + row * PARAMETERS + SKIP) != 0
        unchanged = tl.where(skip, blocks, 0)
        full = tl.where(skip, 0, full)
        blocks -= unchanged
    lanes = sums.no_lanes(BLOCK, chunks.vector(STORAGE), PAIRS)
    bounds = (0, full, blocks)
    for k in tl.static_range(2):  # the full blocks, then the rest
        lanes = update_blocks(
            lanes,
            chunk,
            bounds[k],
            bounds[k + 1],
            h,
            seed,
            step,
            OBSERVE,
            RULE,
            STATES,
            PER_ELEMENT,
            PENALTY,
            OPERATOR,
            STORAGE,
            COMPUTE,
            STATE,
            ROUNDING,
            STATS,
            SHIFTED,
            PIPELINE,
            BLOCK,
            k == 0,
        )
    if STATS:
        if MAY_SKIP:
            lanes = add_unchanged(lanes, chunk, unchanged, STORAGE, COMPUTE, BLOCK)
        found = sums.add_lanes(lanes)
        if PAIRS:  # noqa: SIM102  (one condition is known to the compiler, the other to the device)
            if not (sums.hold(lanes, found, "both") & sums.hold(lanes, found, "square")):
                tl.debug_barrier()  # weights are loaded by other threads than those that have stored them
                anew = sums.no_lanes(BLOCK, chunks.vector(STORAGE))
                found = sums.add_lanes(add_unchanged(anew, chunk, tl.cdiv(chunk.numel, BLOCK), STORAGE, COMPUTE, BLOCK))
        tl.store(partials + ABSOLUTE * stride + chunk.index, found.absolute)
        tl.store(partials + SQUARE * stride + chunk.index, found.square)
        tl.store(partials + NONZEROS * stride + chunk.index, found.nonzeros.to(tl.float64))
        tl.store(partials + GRADIENT_SQUARE * stride + chunk.index, found.gradient)
        tl.store(partials + ZERO_GROUPS * stride + chunk.index, 0.0)
