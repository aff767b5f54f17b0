"""Finds what one program works on: a chunk of a segment, in blocks."""

from __future__ import annotations

import triton
import triton.language as tl

from regkernels.backends.triton.kernels.columns import ALIGNED, CHUNK, FIRST, NUMEL, WIDTH


@triton.jit
def find(segments, owners, first_chunk):
    """The chunk of this program, the row of its segment, where in the segment it begins and how many elements it has."""
    chunk = first_chunk + tl.program_id(0)
    segment = segments + tl.load(owners + chunk).to(tl.int64) * WIDTH
    begin = (chunk - tl.load(segment + FIRST)) * CHUNK
    numel = tl.minimum(tl.load(segment + NUMEL) - begin, CHUNK).to(tl.int32)
    return chunk, segment, begin, numel


@triton.jit
def full_blocks(segment, numel, BLOCK: tl.constexpr):
    """Counts the blocks that can be moved 16 bytes at a time and without a mask; the rest cannot."""
    return tl.where(tl.load(segment + ALIGNED) != 0, numel // BLOCK, 0)


@triton.jit
def pointer(segment, COLUMN: tl.constexpr, begin, TYPE: tl.constexpr, WIDE: tl.constexpr):
    """The address in a column, ``begin`` elements on.

    WIDE is the promise of 16-byte alignment. It must stand behind the cast: loads through a pointer from a table are
    scalar without it. Each variant loads the address anew, as a promise holds for all uses of a value.
    """
    address = tl.load(segment + COLUMN).to(tl.pointer_type(TYPE))
    if WIDE:
        address = tl.multiple_of(address, 16)
    return address + begin


@triton.jit
def load(pointer, offsets, mask, WIDE: tl.constexpr):
    if WIDE:
        return tl.load(pointer + offsets)
    else:
        return tl.load(pointer + offsets, mask=mask, other=0.0)


@triton.jit
def store(pointer, offsets, values, mask, WIDE: tl.constexpr):
    if WIDE:
        tl.store(pointer + offsets, values)
    else:
        tl.store(pointer + offsets, values, mask=mask)


@triton.constexpr_function
def vector(storage):
    """Tells how many elements of a type a 16-byte load brings."""
    return 128 // storage.primitive_bitwidth
