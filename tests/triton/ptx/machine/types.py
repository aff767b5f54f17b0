"""Knows PTX's types: how wide they are, and as what NumPy computes with them."""

from __future__ import annotations

import re

import numpy

from tests.triton.ptx.machine.faults import Unsupported

u1, u2, u4, u8 = numpy.uint8, numpy.uint16, numpy.uint32, numpy.uint64
i1, i2, i4, i8 = numpy.int8, numpy.int16, numpy.int32, numpy.int64
f2, f4, f8 = numpy.float16, numpy.float32, numpy.float64

POISON = 0xDEAD_BEEF_DEAD_BEEF
"""What a register holds before anything is written into it."""


def width(type: str) -> int:
    """Returns the bits of a type; of a predicate 1."""
    if type == "pred":
        return 1
    found = re.fullmatch(r"[busf](8|16|32|64)|(bf16)|(b?f16x2)|(f32x2)", type)
    if found is None:
        raise Unsupported(f"the type {type}")
    return int(found[1] or (16 if found[2] else 32 if found[3] else 64))


def bits(size: int) -> str:
    """Returns the NumPy name of unsigned integers of so many bits, as generated code calls it."""
    return f"u{size // 8}"


def is_float(type: str) -> bool:
    return type[0] == "f" or type == "bf16"


def computed(type: str) -> str:
    """Returns what NumPy computes with: bfloat16, which it does not know, as the float32 that has the same value."""
    if type in ("bf16", "pred"):
        return "f4" if type == "bf16" else "bool_"
    kind = type[0] if type[0] in "uf" else {"s": "i", "b": "u"}[type[0]]
    return f"{kind}{width(type) // 8}"


def constant(text: str, type: str) -> numpy.generic:
    """Returns a constant as it stands in the text, of a type."""
    if found := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})|0[dD]([0-9a-fA-F]{16})", text):
        pattern: numpy.generic = u4(int(found[1], 16)) if found[1] else u8(int(found[2], 16))
    elif re.fullmatch(r"-?(?:0[xX][0-9a-fA-F]+|\d+)U?", text) and type != "pred":
        pattern = getattr(numpy, f"uint{width(type)}")(int(text.rstrip("U"), 0) % (1 << width(type)))
    elif type == "pred" and text in ("0", "1", "-1"):
        return numpy.bool_(text != "0")
    else:
        raise Unsupported(f"the constant {text} as {type}")
    if pattern.itemsize * 8 != width(type) or type == "bf16":
        raise Unsupported(f"the constant {text} as {type}")
    return pattern.view(computed(type))
