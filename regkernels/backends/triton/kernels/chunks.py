"""Finds what one program works on: a chunk of a segment, in blocks."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from regkernels.backends.triton.kernels.columns import ALIGNED, CHUNK, FIRST, NUMEL, WIDTH
from regkernels.backends.triton.kernels.dtypes import widen


class Chunk(NamedTuple):
    """Holds its number, the row of its segment, where in the segment it begins and how many elements it has."""

    index: Any
    segment: Any
    start: Any
    numel: Any


@triton.jit
def find(segments, owners, first_chunk):
    """Finds the chunk of this program."""
    index = first_chunk + tl.program_id(0)
    segment = segments + tl.load(owners + index).to(tl.int64) * WIDTH
    start = (index - tl.load(segment + FIRST)) * CHUNK
    numel = tl.minimum(tl.load(segment + NUMEL) - start, CHUNK).to(tl.int32)
    return Chunk(index, segment, start, numel)


@triton.jit
def count_blocks(chunk, BLOCK: tl.constexpr):
    """Counts the blocks that can be moved 16 bytes at a time and without a mask, and all, with the rest, which cannot."""
    full = tl.where(tl.load(chunk.segment + ALIGNED) != 0, chunk.numel // BLOCK, 0)
    return full, tl.cdiv(chunk.numel, BLOCK)


@triton.jit
def elements(chunk, block, BLOCK: tl.constexpr):
    """Finds where in a chunk the elements of a block are, and which of them there are."""
    offsets = block * BLOCK + tl.arange(0, BLOCK)
    return offsets, offsets < chunk.numel


@triton.jit
def pointer(chunk, COLUMN: tl.constexpr, TYPE: tl.constexpr, WIDE: tl.constexpr):
    """Returns the address of a chunk's first element in a column.

    WIDE is the promise of 16-byte alignment. It must stand behind the cast: loads through a pointer from a table are
    scalar without it. Each variant loads the address anew, as a promise holds for all uses of a value.
    """
    address = tl.load(chunk.segment + COLUMN).to(tl.pointer_type(TYPE))
    if WIDE:
        address = tl.multiple_of(address, 16)
    return address + chunk.start


@triton.jit
def pointers(chunk, COLUMN: tl.constexpr, COLUMNS: tl.constexpr, TYPE: tl.constexpr, WIDE: tl.constexpr):
    """Returns the addresses in COLUMNS columns side by side."""
    found = ()
    for k in tl.static_range(COLUMNS):
        found = found + (pointer(chunk, COLUMN + k, TYPE, WIDE),)
    return found


@triton.jit
def load(pointer, offsets, mask, WIDE: tl.constexpr):
    if WIDE:
        return tl.load(pointer + offsets)
    else:
        return tl.load(pointer + offsets, mask=mask, other=0.0)


@triton.jit
def load_each(pointers, offsets, mask, COLUMNS: tl.constexpr, COMPUTE: tl.constexpr, WIDE: tl.constexpr):
    """Loads what is stored behind each of COLUMNS pointers, in the compute type."""
    values = ()
    for k in tl.static_range(COLUMNS):
        values = values + (widen(load(pointers[k], offsets, mask, WIDE), COMPUTE),)
    return values


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
