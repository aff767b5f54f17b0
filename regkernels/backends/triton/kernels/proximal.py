"""Soft-threshold and proximal decay in the metric of a step that has been made, for all segments of one kind in one launch."""

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
    segment,
    start,
    begin,
    end,
    numel,
    h,
    METRIC: tl.constexpr,
    OPERANDS: tl.constexpr,
    STORAGE: tl.constexpr,
    OPERAND: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The blocks ``begin`` to ``end`` of the chunk that begins at element ``start`` of its segment."""
    weight = chunks.pointer(segment, WEIGHT, start, STORAGE, WIDE)
    pointers = ()
    for k in tl.static_range(OPERANDS):
        pointers = pointers + (chunks.pointer(segment, STATE0 + k, start, OPERAND, WIDE),)
    for block in range(begin, end):
        offsets = block * BLOCK + tl.arange(0, BLOCK)
        mask = offsets < numel
        w = widen(chunks.load(weight, offsets, mask, WIDE), COMPUTE)
        operands = ()
        for k in tl.static_range(OPERANDS):
            operands = operands + (widen(chunks.load(pointers[k], offsets, mask, WIDE), COMPUTE),)
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
    """One chunk of a segment."""
    _, segment, start, numel = chunks.find(segments, owners, first_chunk)
    h = load_row(rows, tl.load(segment + ROW), COMPUTE)
    if (h.lr != 0) & (h.skip == 0):
        full = chunks.full_blocks(segment, numel, BLOCK)
        blocks = tl.cdiv(numel, BLOCK)
        proximal_blocks(segment, start, 0, full, numel, h, METRIC, OPERANDS, STORAGE, OPERAND, COMPUTE, BLOCK, True)
        proximal_blocks(
            segment, start, full, blocks, numel, h, METRIC, OPERANDS, STORAGE, OPERAND, COMPUTE, BLOCK, False
        )
