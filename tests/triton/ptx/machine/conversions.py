"""Translates what moves values, and what changes their type."""

from __future__ import annotations

from tests.triton.ptx.machine.opcodes import Context, Effect, Result, translates
from tests.triton.ptx.machine.types import bits, computed, is_float, width


@translates("mov")
def move(c: Context) -> Effect:
    c.modifiers()
    target, source = c.operands
    size = width(c.type)
    if isinstance(target, tuple):
        part = size // len(target)
        whole = c.read(1, f"b{size}")
        parts = [f"({whole} >> {bits(size)}({place * part})).astype({bits(part)})" for place in range(len(target))]
        return Effect([Result(*each) for each in zip(target, [f"b{part}"] * len(target), parts, strict=True)])
    if isinstance(source, tuple):
        part = size // len(source)
        words = [c.read_one(operand, f"b{part}") for operand in source]
        shifted = [f"({word}.astype({bits(size)}) << {bits(size)}({k * part}))" for k, word in enumerate(words)]
        return c.give(" | ".join(shifted), f"b{size}")
    type = "pred" if c.type == "pred" else f"b{size}"
    return c.give(f"T.full({c.read(1, type)})", type)


_TO_INTEGER = ("rzi", "rni", "rmi", "rpi")


@translates("cvt")
def convert(c: Context) -> Effect:
    to, source = c.words[-2:]
    rounding = c.words[1:-2]
    if to in ("bf16x2", "f16x2"):
        if (rounding, source) != (["rn"], "f32"):
            raise c.unsupported()
        to_bits = "brain_bits" if to == "bf16x2" else "half_bits"
        return c.give(f"pair({to_bits}({c.read(2, 'f32')}), {to_bits}({c.read(1, 'f32')}))", "b32")
    if is_float(to):
        if is_float(source) and not rounding and _is_exact(source, to):
            return c.give(f"{c.read(1, source)}.astype({computed(to)})", to)
        if rounding != ["rn"] or (to == "bf16" and source != "f32"):
            raise c.unsupported()
        return c.give(f"{c.read(1, source)}.astype({computed(to)})", to)
    if is_float(source):
        if len(rounding) != 1 or rounding[0] not in _TO_INTEGER:
            raise c.unsupported()
        return c.give(f"to_integer({c.read(1, source)}, {computed(to)}, {rounding[0]!r})", to)
    if rounding:
        raise c.unsupported()
    return c.give(f"{c.read(1, source)}.astype({computed(to)})", to)


def _is_exact(source: str, to: str) -> bool:
    return source == to or width(source) < width(to)
