"""Applies soft-threshold and proximal decay in the metric of a step that has been made, to all segments of a kind in one launch."""

from __future__ import annotations

import triton
import triton.language as tl

from regkernels.backends.triton.kernels import chunks
from regkernels.backends.triton.kernels.columns import ROW, STATE0, WEIGHT
from regkernels.backends.triton.kernels.dtypes import narrow, widen
from regkernels.backends.triton.kernels.shrink import proximal_step
from regkernels.backends.triton.kernels.step import load_row


@triton.jit
def proximal_blocks(
    chunk,
    begin,
    end,
    h,
    METRIC: tl.constexpr,
    OPERANDS: tl.constexpr,
    STORAGE: tl.constexpr,
    OPERAND: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Shrinks the blocks ``begin`` to ``end`` of a chunk."""
    weight = chunks.pointer(chunk, WEIGHT, STORAGE, WIDE)
    pointers = chunks.pointers(chunk, STATE0, OPERANDS, OPERAND, WIDE)
    for block in range(begin, end):
        offsets, mask = chunks.elements(chunk, block, BLOCK)
        w = widen(chunks.load(weight, offsets, mask, WIDE), COMPUTE)
        operands = chunks.load_each(pointers, offsets, mask, OPERANDS, COMPUTE, WIDE)
        z = proximal_step(w, METRIC(operands, h), h, True)
        chunks.store(weight, offsets, narrow(z, STORAGE), mask, WIDE)


@triton.jit(do_not_specialize=["first_chunk"])
def proximal(
    segments,
    owners,
    rows,
    first_chunk: tl.int64,
    METRIC: tl.constexpr,
    OPERANDS: tl.constexpr,
    STORAGE: tl.constexpr,
    OPERAND: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Shrinks one chunk of a segment."""
    chunk = chunks.find(segments, owners, first_chunk)
    h = load_row(rows, tl.load(chunk.segment + ROW), COMPUTE)
    if (h.lr != 0) & (h.skip == 0):
        full, blocks = chunks.count_blocks(chunk, BLOCK)
        proximal_blocks(chunk, 0, full, h, METRIC, OPERANDS, STORAGE, OPERAND, COMPUTE, BLOCK, True)
        proximal_blocks(chunk, full, blocks, h, METRIC, OPERANDS, STORAGE, OPERAND, COMPUTE, BLOCK, False)
