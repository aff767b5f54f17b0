"""What instructions make of integers and bits, against Python's integers."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy
import pytest
from numpy.typing import NDArray

from tests.triton.ptx.machine.types import width
from tests.triton.ptx.programs import applied, patterns

Array = NDArray[Any]
Function = Callable[..., Any]


def signed(x: int, bits: int) -> int:
    return x - (1 << bits) if x >> (bits - 1) else x


def towards_zero(a: int, b: int) -> int:
    return (abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1) if b else -1


def moved(a: int, by: int) -> int:
    return a >> min(by, 99)


def signed_field(a: int, at: int, n: int) -> int:
    """As the PTX manual writes it: bit by bit."""
    at, n = at & 255, n & 255
    sign = (a >> min(at + n - 1, 31)) & 1 if n else 0
    return sum(((a >> (at + i)) & 1 if i < n and at + i <= 31 else sign) << i for i in range(32))


INTEGERS: list[tuple[str, str, str, Function]] = [
    *((f"add.s{n}", f"b{n}", f"b{n} b{n}", operator.add) for n in (16, 32, 64)),
    *((f"sub.s{n}", f"b{n}", f"b{n} b{n}", operator.sub) for n in (16, 32, 64)),
    *((f"mul.lo.s{n}", f"b{n}", f"b{n} b{n}", operator.mul) for n in (32, 64)),
    *(
        (f"mul.hi.{kind}{n}", f"b{n}", f"{kind}{n} {kind}{n}", lambda a, b, n=n: a * b >> n)
        for kind in "us"
        for n in (32, 64)
    ),
    *((f"mul.wide.{kind}32", "b64", f"{kind}32 {kind}32", operator.mul) for kind in "us"),
    *((f"mad.wide.{kind}32", "b64", f"{kind}32 {kind}32 b64", lambda a, b, c: a * b + c) for kind in "us"),
    ("mad.lo.s64", "b64", "b64 b64 b64", lambda a, b, c: a * b + c),
    *((f"div.{kind}{n}", f"b{n}", f"{kind}{n} {kind}{n}", towards_zero) for kind in "us" for n in (32, 64)),
    *(
        (f"rem.{kind}{n}", f"b{n}", f"{kind}{n} {kind}{n}", lambda a, b: a - towards_zero(a, b) * b)
        for kind in "us"
        for n in (32, 64)
    ),
    *(
        (f"{name}.{kind}64", "b64", f"{kind}64 {kind}64", f)
        for name, f in (("min", min), ("max", max))
        for kind in "us"
    ),
    *(
        (f"{name}.b{n}", f"b{n}", f"b{n} b{n}", getattr(operator, f"{name}_"))
        for name in ("and", "or")
        for n in (16, 64)
    ),
    *((f"xor.b{n}", f"b{n}", f"b{n} b{n}", operator.xor) for n in (32, 64)),
    ("not.b32", "b32", "b32", operator.invert),
    ("neg.s32", "b32", "s32", operator.neg),
    ("abs.s32", "b32", "s32", abs),
    *((f"shl.b{n}", f"b{n}", f"b{n} b32", lambda a, by: a << min(by, 99)) for n in (16, 32, 64)),
    *((f"shr.{kind}{n}", f"b{n}", f"{kind}{n} b32", moved) for kind in "us" for n in (32, 64)),
    ("shf.l.wrap.b32", "b32", "b32 b32 b32", lambda a, b, c: (b << 32 | a) << (c & 31) >> 32),
    ("shf.r.clamp.b32", "b32", "b32 b32 b32", lambda a, b, c: (b << 32 | a) >> min(c, 32)),
    ("popc.b32", "b32", "b32", int.bit_count),
    ("clz.b32", "b32", "b32", lambda a: 32 - a.bit_length()),
    ("clz.b64", "b32", "b64", lambda a: 64 - a.bit_length()),
    ("bfe.u32", "b32", "b32 b32 b32", lambda a, at, n: (a >> (at & 255)) & ((1 << min(n & 255, 32)) - 1)),
    (
        "bfi.b32",
        "b32",
        "b32 b32 b32 b32",
        lambda a, b, at, n: b & ~(((1 << (n & 255)) - 1) << (at & 255)) | (a & ((1 << (n & 255)) - 1)) << (at & 255),
    ),
    *(
        (f"cvt.{to}.{of}", to, of, lambda a: a)
        for to, of in (("u64", "u32"), ("s64", "s32"), ("u16", "u32"), ("s32", "s16"))
    ),
    *(
        (f"setp.{how}.{kind}{n}", "pred", f"{kind}{n} {kind}{n}", getattr(operator, how))
        for how in ("eq", "ne", "lt", "le", "gt", "ge")
        for kind, n in (("s", 64), ("u", 32), ("s", 16))
    ),
]
"""Opcode, types of the result and the operands, and what comes out, as a number of any size."""


@pytest.mark.parametrize(("opcode", "result", "types", "function"), INTEGERS, ids=[case[0] for case in INTEGERS])
def test_integers(opcode: str, result: str, types: str, function: Function) -> None:
    sources = {f"x{k}": (type, patterns(width(type), k)) for k, type in enumerate(types.split())}
    got = applied(opcode, result, sources)
    rows = zip(
        *([signed(int(x), width(type)) if type[0] == "s" else int(x) for x in v] for type, v in sources.values()),
        strict=True,
    )
    size = 32 if result == "pred" else width(result)
    for row, found in zip(rows, got, strict=True):
        expected = function(*row) % (1 << size)
        if opcode[:3] == "rem" and row[1] == 0:
            expected = row[0] % (1 << size)
        assert int(found) == expected, row


@pytest.mark.parametrize("begin", [0, 5, 30, 31, 32, 261])
def test_signed_fields(begin: int) -> None:
    words, begins, lengths = patterns(32, 1), numpy.full(64, begin, "u4"), numpy.arange(64, dtype="u4")
    got = applied("bfe.s32", "b32", {"a": ("s32", words), "at": ("b32", begins), "n": ("b32", lengths)})
    assert got.tolist() == [signed_field(int(a), begin, n) for n, a in enumerate(words)]


def test_bytes_are_permuted() -> None:
    a, b = patterns(32, 1), patterns(32, 2)
    got = applied("prmt.b32", "b32", {"a": ("b32", a), "b": ("b32", b)}, "{a}, {b}, 0x7c32U")
    for x, y, found in zip(a.tolist(), b.tolist(), got.tolist(), strict=True):
        bytes_of = (x | y << 32).to_bytes(8, "little")
        sign = 255 if bytes_of[4] & 128 else 0
        assert found.to_bytes(4, "little") == bytes([bytes_of[2], bytes_of[3], sign, bytes_of[7]])


def test_bits_are_looked_up() -> None:
    words = {name: ("b32", patterns(32, k)) for k, name in enumerate("abc")}
    a, b, c = (values for _, values in words.values())
    assert (applied("lop3.b32", "b32", words, "{a}, {b}, {c}, 0xE8") == (a & b | a & c | b & c)).all()
    assert (applied("lop3.b32", "b32", words, "{a}, {b}, {c}, 0x96") == a ^ b ^ c).all()
