"""Maps over all elements of many tensors in one launch: the penalty's gradient, and the soft-threshold."""

from __future__ import annotations

import triton
import triton.language as tl

from regkernels.backends.triton.kernels import chunks
from regkernels.backends.triton.kernels.columns import GRADIENT, WEIGHT
from regkernels.backends.triton.kernels.dtypes import narrow, widen
from regkernels.backends.triton.kernels.shrink import sign, soft_threshold


@triton.jit
def penalty_gradient(w, absolute, square):
    gradient = absolute * sign(w)
    return tl.where(square != 0, gradient + square * w, gradient)  # 0 * inf would be NaN


@triton.jit
def shrink(x, threshold, _):
    return soft_threshold(x, threshold)


@triton.jit
def map_blocks(
    segment,
    start,
    begin,
    end,
    numel,
    first,
    second,
    FUNCTION: tl.constexpr,
    STORAGE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The blocks ``begin`` to ``end`` of the chunk that begins at element ``start`` of its segment."""
    source = chunks.pointer(segment, WEIGHT, start, STORAGE, WIDE)
    out = chunks.pointer(segment, GRADIENT, start, STORAGE, WIDE)
    for block in range(begin, end):
        offsets = block * BLOCK + tl.arange(0, BLOCK)
        mask = offsets < numel
        x = widen(chunks.load(source, offsets, mask, WIDE), COMPUTE)
        y = FUNCTION(x, first, second)
        chunks.store(out, offsets, narrow(y, STORAGE), mask, WIDE)


@triton.jit(do_not_specialize=["first_chunk", "first", "second"], do_not_specialize_on_alignment=["scale"])
def elementwise(
    segments,
    owners,
    scale,
    first_chunk: tl.int64,
    first: tl.float64,
    second: tl.float64,
    FUNCTION: tl.constexpr,
    SCALED: tl.constexpr,
    STORAGE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """FUNCTION of what the weight column points to, into what the gradient column points to.

    ``first`` and ``second`` are FUNCTION's parameters; with SCALED they are multiplied by the number ``scale`` points to.
    """
    if SCALED:
        factor = tl.load(scale).to(tl.float64)
        first, second = factor * first, factor * second
    # Not tl.cast: in the interpreter numbers are Python's, which it would take to float32 on the way.
    a = tl.full([], first, COMPUTE)
    b = tl.full([], second, COMPUTE)
    _, segment, start, numel = chunks.find(segments, owners, first_chunk)
    full = chunks.full_blocks(segment, numel, BLOCK)
    blocks = tl.cdiv(numel, BLOCK)
    map_blocks(segment, start, 0, full, numel, a, b, FUNCTION, STORAGE, COMPUTE, BLOCK, True)
    map_blocks(segment, start, full, blocks, numel, a, b, FUNCTION, STORAGE, COMPUTE, BLOCK, False)
