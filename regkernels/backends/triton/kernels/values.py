"""Holds the loops over the penalties of single elements beyond L1 and L2, whose values and slopes are in
`regkernels.backends.triton.kernels.penalties`, and over L1 with weights of its own for each element."""

from __future__ import annotations

import triton
import triton.language as tl

from regkernels.backends.triton.kernels import chunks
from regkernels.backends.triton.kernels.columns import GRADIENT, STATE0, WEIGHT
from regkernels.backends.triton.kernels.dtypes import narrow, scalar, widen
from regkernels.backends.triton.kernels.elementwise import map_blocks
from regkernels.backends.triton.kernels.shrink import sign
from regkernels.backends.triton.kernels.sums import add_partials, add_vectors


@triton.jit
def add_terms(
    lanes,
    chunk,
    begin,
    end,
    parameters,
    FUNCTION: tl.constexpr,
    STORAGE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Adds up the terms of the blocks ``begin`` to ``end`` of a chunk."""
    source = chunks.pointer(chunk, WEIGHT, STORAGE, WIDE)
    for block in range(begin, end):
        offsets, mask = chunks.elements(chunk, block, BLOCK)
        w = widen(chunks.load(source, offsets, mask, WIDE), COMPUTE)
        terms = FUNCTION(w.to(tl.float64), *parameters)  # 0 for the zeros beyond the end
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
    """Sums FUNCTION, per chunk of what the weight column points to, into ``partials`` (chunks,)."""
    parameters = (scalar(a, tl.float64), scalar(b, tl.float64), scalar(c, tl.float64), scalar(d, tl.float64))
    chunk = chunks.find(segments, owners, first_chunk)
    full, blocks = chunks.count_blocks(chunk, BLOCK)
    lanes = tl.zeros([BLOCK // chunks.vector(STORAGE)], tl.float64)
    lanes = add_terms(lanes, chunk, 0, full, parameters, FUNCTION, STORAGE, COMPUTE, BLOCK, True)
    lanes = add_terms(lanes, chunk, full, blocks, parameters, FUNCTION, STORAGE, COMPUTE, BLOCK, False)
    tl.store(partials + chunk.index, tl.sum(lanes))


@triton.jit(do_not_specialize=["stride", "scale"])
def total(partials, out, stride: tl.int64, scale: tl.float64, BLOCK: tl.constexpr):
    """Computes ``scale`` times the sum of all partials; a scale of 0 switches it off, also where the sum is infinite."""
    lanes = add_partials(tl.zeros([BLOCK], tl.float64), partials, 0, stride, BLOCK)
    tl.store(out, tl.where(scale != 0, scale * tl.sum(lanes), 0.0))


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
    """Writes FUNCTION of what the weight column points to into what the gradient column points to; a and b are multiplied by
    the number that ``upstream`` points to."""
    factor = tl.load(upstream).to(tl.float64)
    parameters = (scalar(factor * a, COMPUTE), scalar(factor * b, COMPUTE), scalar(c, COMPUTE), scalar(d, COMPUTE))
    chunk = chunks.find(segments, owners, first_chunk)
    full, blocks = chunks.count_blocks(chunk, BLOCK)
    map_blocks(chunk, 0, full, parameters, FUNCTION, STORAGE, COMPUTE, BLOCK, True)
    map_blocks(chunk, full, blocks, parameters, FUNCTION, STORAGE, COMPUTE, BLOCK, False)


# L1 with weights of its own for each element: these are in the first state's column, in the compute type.


@triton.jit
def add_weighted(
    lanes,
    chunk,
    begin,
    end,
    STORAGE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    source = chunks.pointer(chunk, WEIGHT, STORAGE, WIDE)
    factors = chunks.pointer(chunk, STATE0, COMPUTE, WIDE)
    for block in range(begin, end):
        offsets, mask = chunks.elements(chunk, block, BLOCK)
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
    """Sums, per chunk, factor times magnitude into ``partials`` (chunks,)."""
    chunk = chunks.find(segments, owners, first_chunk)
    full, blocks = chunks.count_blocks(chunk, BLOCK)
    lanes = tl.zeros([BLOCK // chunks.vector(STORAGE)], tl.float64)
    lanes = add_weighted(lanes, chunk, 0, full, STORAGE, COMPUTE, BLOCK, True)
    lanes = add_weighted(lanes, chunk, full, blocks, STORAGE, COMPUTE, BLOCK, False)
    tl.store(partials + chunk.index, tl.sum(lanes))


@triton.jit
def weighted_blocks(
    chunk,
    begin,
    end,
    scale,
    STORAGE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    source = chunks.pointer(chunk, WEIGHT, STORAGE, WIDE)
    factors = chunks.pointer(chunk, STATE0, COMPUTE, WIDE)
    out = chunks.pointer(chunk, GRADIENT, STORAGE, WIDE)
    for block in range(begin, end):
        offsets, mask = chunks.elements(chunk, block, BLOCK)
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
    """Writes ``upstream * strength * factor * sign(w)``, into what the gradient column points to."""
    scale = scalar(tl.load(upstream).to(tl.float64) * strength, COMPUTE)
    chunk = chunks.find(segments, owners, first_chunk)
    full, blocks = chunks.count_blocks(chunk, BLOCK)
    weighted_blocks(chunk, 0, full, scale, STORAGE, COMPUTE, BLOCK, True)
    weighted_blocks(chunk, full, blocks, scale, STORAGE, COMPUTE, BLOCK, False)
