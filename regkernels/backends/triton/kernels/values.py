"""The loops over the penalties of single elements beyond L1 and L2, whose values and slopes are in
`regkernels.backends.triton.kernels.penalties`, and over L1 with weights of its own for each element."""

from __future__ import annotations

import triton
import triton.language as tl

from regkernels.backends.triton.kernels import chunks
from regkernels.backends.triton.kernels.columns import GRADIENT, STATE0, WEIGHT
from regkernels.backends.triton.kernels.dtypes import narrow, widen
from regkernels.backends.triton.kernels.shrink import sign
from regkernels.backends.triton.kernels.sums import add_partials, add_vectors


@triton.jit
def add_terms(
    lanes,
    segment,
    start,
    begin,
    end,
    numel,
    a,
    b,
    c,
    d,
    FUNCTION: tl.constexpr,
    STORAGE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The blocks ``begin`` to ``end`` of the chunk that begins at element ``start`` of its segment."""
    source = chunks.pointer(segment, WEIGHT, start, STORAGE, WIDE)
    for block in range(begin, end):
        offsets = block * BLOCK + tl.arange(0, BLOCK)
        w = widen(chunks.load(source, offsets, offsets < numel, WIDE), COMPUTE)
        terms = FUNCTION(w.to(tl.float64), a, b, c, d)  # 0 for the zeros beyond the end
        lanes += add_vectors(terms, chunks.vector(STORAGE))
    return lanes


@triton.jit(do_not_specialize=["first_chunk", "a", "b", "c", "d"])
def reduce_value(
    segments,
    owners,
    partials,
    first_chunk: tl.int64,
    a: tl.float64,
    b: tl.float64,
    c: tl.float64,
    d: tl.float64,
    FUNCTION: tl.constexpr,
    STORAGE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Per chunk of what the weight column points to: the sum of FUNCTION, into ``partials`` (chunks,)."""
    # Not tl.cast: in the interpreter numbers are Python's, which it would take to float32 on the way.
    a = tl.full([], a, tl.float64)
    b = tl.full([], b, tl.float64)
    c = tl.full([], c, tl.float64)
    d = tl.full([], d, tl.float64)
    chunk, segment, start, numel = chunks.find(segments, owners, first_chunk)
    full = chunks.full_blocks(segment, numel, BLOCK)
    blocks = tl.cdiv(numel, BLOCK)
    lanes = tl.zeros([BLOCK // chunks.vector(STORAGE)], tl.float64)
    lanes = add_terms(lanes, segment, start, 0, full, numel, a, b, c, d, FUNCTION, STORAGE, COMPUTE, BLOCK, True)
    lanes = add_terms(lanes, segment, start, full, blocks, numel, a, b, c, d, FUNCTION, STORAGE, COMPUTE, BLOCK, False)
    tl.store(partials + chunk, tl.sum(lanes))


@triton.jit(do_not_specialize=["stride", "scale"])
def total(partials, out, stride: tl.int64, scale: tl.float64, BLOCK: tl.constexpr):
    """``scale`` times the sum of all partials; a scale of 0 switches it off, also where the sum is infinite."""
    lanes = add_partials(tl.zeros([BLOCK], tl.float64), partials, 0, stride, BLOCK)
    tl.store(out, tl.where(scale != 0, scale * tl.sum(lanes), 0.0))


@triton.jit
def slope_blocks(
    segment,
    start,
    begin,
    end,
    numel,
    a,
    b,
    c,
    d,
    FUNCTION: tl.constexpr,
    STORAGE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    source = chunks.pointer(segment, WEIGHT, start, STORAGE, WIDE)
    out = chunks.pointer(segment, GRADIENT, start, STORAGE, WIDE)
    for block in range(begin, end):
        offsets = block * BLOCK + tl.arange(0, BLOCK)
        mask = offsets < numel
        w = widen(chunks.load(source, offsets, mask, WIDE), COMPUTE)
        chunks.store(out, offsets, narrow(FUNCTION(w, a, b, c, d), STORAGE), mask, WIDE)


@triton.jit(do_not_specialize=["first_chunk", "a", "b", "c", "d"], do_not_specialize_on_alignment=["upstream"])
def slope(
    segments,
    owners,
    upstream,
    first_chunk: tl.int64,
    a: tl.float64,
    b: tl.float64,
    c: tl.float64,
    d: tl.float64,
    FUNCTION: tl.constexpr,
    STORAGE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """FUNCTION of what the weight column points to, into what the gradient column points to; a and b are multiplied by
    the number that ``upstream`` points to."""
    factor = tl.load(upstream).to(tl.float64)
    # Not tl.cast: in the interpreter numbers are Python's, which it would take to float32 on the way.
    a = tl.full([], factor * a, COMPUTE)
    b = tl.full([], factor * b, COMPUTE)
    c = tl.full([], c, COMPUTE)
    d = tl.full([], d, COMPUTE)
    _, segment, start, numel = chunks.find(segments, owners, first_chunk)
    full = chunks.full_blocks(segment, numel, BLOCK)
    blocks = tl.cdiv(numel, BLOCK)
    slope_blocks(segment, start, 0, full, numel, a, b, c, d, FUNCTION, STORAGE, COMPUTE, BLOCK, True)
    slope_blocks(segment, start, full, blocks, numel, a, b, c, d, FUNCTION, STORAGE, COMPUTE, BLOCK, False)


# L1 with weights of its own for each element: these are in the first state's column, in the compute type.


@triton.jit
def add_weighted(
    lanes,
    segment,
    start,
    begin,
    end,
    numel,
    STORAGE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    source = chunks.pointer(segment, WEIGHT, start, STORAGE, WIDE)
    factors = chunks.pointer(segment, STATE0, start, COMPUTE, WIDE)
    for block in range(begin, end):
        offsets = block * BLOCK + tl.arange(0, BLOCK)
        mask = offsets < numel
        x = tl.abs(widen(chunks.load(source, offsets, mask, WIDE), COMPUTE).to(tl.float64))
        factor = chunks.load(factors, offsets, mask, WIDE).to(tl.float64)
        lanes += add_vectors(tl.where(factor != 0, factor * x, 0.0), chunks.vector(STORAGE))
    return lanes


@triton.jit(do_not_specialize=["first_chunk"])
def reduce_weighted(
    segments,
    owners,
    partials,
    first_chunk: tl.int64,
    STORAGE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Per chunk: the sum of factor times magnitude, into ``partials`` (chunks,)."""
    chunk, segment, start, numel = chunks.find(segments, owners, first_chunk)
    full = chunks.full_blocks(segment, numel, BLOCK)
    blocks = tl.cdiv(numel, BLOCK)
    lanes = tl.zeros([BLOCK // chunks.vector(STORAGE)], tl.float64)
    lanes = add_weighted(lanes, segment, start, 0, full, numel, STORAGE, COMPUTE, BLOCK, True)
    lanes = add_weighted(lanes, segment, start, full, blocks, numel, STORAGE, COMPUTE, BLOCK, False)
    tl.store(partials + chunk, tl.sum(lanes))


@triton.jit
def weighted_blocks(
    segment,
    start,
    begin,
    end,
    numel,
    scale,
    STORAGE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    source = chunks.pointer(segment, WEIGHT, start, STORAGE, WIDE)
    factors = chunks.pointer(segment, STATE0, start, COMPUTE, WIDE)
    out = chunks.pointer(segment, GRADIENT, start, STORAGE, WIDE)
    for block in range(begin, end):
        offsets = block * BLOCK + tl.arange(0, BLOCK)
        mask = offsets < numel
        w = widen(chunks.load(source, offsets, mask, WIDE), COMPUTE)
        factor = chunks.load(factors, offsets, mask, WIDE)
        chunks.store(out, offsets, narrow((scale * factor) * sign(w), STORAGE), mask, WIDE)


@triton.jit(do_not_specialize=["first_chunk", "strength"], do_not_specialize_on_alignment=["upstream"])
def slope_weighted(
    segments,
    owners,
    upstream,
    first_chunk: tl.int64,
    strength: tl.float64,
    STORAGE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``upstream * strength * factor * sign(w)``, into what the gradient column points to."""
    scale = tl.full([], tl.load(upstream).to(tl.float64) * strength, COMPUTE)
    _, segment, start, numel = chunks.find(segments, owners, first_chunk)
    full = chunks.full_blocks(segment, numel, BLOCK)
    blocks = tl.cdiv(numel, BLOCK)
    weighted_blocks(segment, start, 0, full, numel, scale, STORAGE, COMPUTE, BLOCK, True)
    weighted_blocks(segment, start, full, blocks, numel, scale, STORAGE, COMPUTE, BLOCK, False)
