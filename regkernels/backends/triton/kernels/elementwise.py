"""Maps functions over all elements of many tensors in one launch: the penalty's gradient, and the soft-threshold."""

from __future__ import annotations

import triton
import triton.language as tl

from regkernels.backends.triton.kernels import chunks
from regkernels.backends.triton.kernels.columns import GRADIENT, WEIGHT
from regkernels.backends.triton.kernels.dtypes import narrow, scalar, widen
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
    """Maps FUNCTION over the blocks ``begin`` to ``end`` of a chunk."""
    source = chunks.pointer(chunk, WEIGHT, STORAGE, WIDE)
    out = chunks.pointer(chunk, GRADIENT, STORAGE, WIDE)
    for block in range(begin, end):
        offsets, mask = chunks.elements(chunk, block, BLOCK)
        x = widen(chunks.load(source, offsets, mask, WIDE), COMPUTE)
        y = FUNCTION(x, *parameters)
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
    """Writes FUNCTION of what the weight column points to into what the gradient column points to.

    ``first`` and ``second`` are FUNCTION's parameters; with SCALED they are multiplied by the number ``scale`` points to.
    """
    if SCALED:
        factor = tl.load(scale).to(tl.float64)
        first, second = factor * first, factor * second
    parameters = (scalar(first, COMPUTE), scalar(second, COMPUTE))
    chunk = chunks.find(segments, owners, first_chunk)
    full, blocks = chunks.count_blocks(chunk, BLOCK)
    map_blocks(chunk, 0, full, parameters, FUNCTION, STORAGE, COMPUTE, BLOCK, True)
    map_blocks(chunk, full, blocks, parameters, FUNCTION, STORAGE, COMPUTE, BLOCK, False)
