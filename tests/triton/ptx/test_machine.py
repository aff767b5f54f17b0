"""What instructions compute, against Python's integers, fractions and torch."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy
import pytest
import torch
from numpy.typing import NDArray

from tests.triton.ptx.machine.types import width
from tests.triton.ptx.programs import applied, started

Array = NDArray[Any]
Function = Callable[..., Any]


def patterns(bits: int, seed: int) -> Array:
    """64 words: around every power of two that sign, overflow and shifts turn on, and random ones."""
    chosen = [0, 1, 2, 31, 32, 33, 63, 64, 0x7FFF, 0x8000, 0xFFFF, (1 << bits - 1) - 1, 1 << bits - 1, (1 << bits) - 1]
    numbers = numpy.random.default_rng(seed)
    some = [*numbers.permutation(numpy.array(chosen, dtype=object) % (1 << bits)), *numbers.integers(0, 1 << 16, 50)]
    spread = [int(x) if k < 30 else int(x) * 0x9E3779B97F4A7C15 % (1 << bits) for k, x in enumerate(some)]
    return numpy.array([x % (1 << bits) for x in spread], f"u{bits // 8}")


def signed(x: int, bits: int) -> int:
    return x - (1 << bits) if x >> (bits - 1) else x


def towards_zero(a: int, b: int) -> int:
    return (abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1) if b else -1


def moved(a: int, by: int) -> int:
    return a >> min(by, 99)


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


# --- floating point ---


def floats(kind: str, seed: int) -> Array:
    """64 numbers: zeros, subnormal, huge, infinite ones, NaN, and usual ones of every size."""
    numbers = numpy.random.default_rng(seed)
    limits = numpy.finfo(kind)
    special = [
        0.0,
        -0.0,
        1.0,
        -1.5,
        limits.tiny,
        -limits.tiny / 8,
        limits.max,
        -limits.max,
        math.inf,
        -math.inf,
        math.nan,
    ]
    usual = numbers.standard_normal(53) * 10.0 ** numbers.integers(-9, 9, 53)
    return numbers.permutation(numpy.array([*special, *usual])).astype(kind)


def same(got: Array, expected: Array) -> bool:
    """Tells whether all bits are equal, but for those of NaN, of which any will do."""
    bits = [x.view(f"u{x.itemsize}") for x in (got, expected)]
    return bool(((bits[0] == bits[1]) | (numpy.isnan(got) & numpy.isnan(expected))).all())


@pytest.mark.parametrize("kind", ["f4", "f8"])
@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "sqrt"])
def test_arithmetic_is_that_of_ieee(name: str, kind: str) -> None:
    """Of float32, in float64 and rounded once more, which changes nothing; of float64, torch's."""
    a, b = floats(kind, 1), floats(kind, 2)
    type = f"f{int(kind[1]) * 8}"
    sources = {"a": (type, a), "b": (type, b)} if name != "sqrt" else {"a": (type, a)}
    got = applied(f"{name}.rn.{type}", type, sources).view(kind)
    x, y = (torch.from_numpy(values).double() for values in (a, b))
    exact = x.sqrt() if name == "sqrt" else getattr(torch, name)(x, y)
    assert same(got, exact.to(torch.float32 if kind == "f4" else torch.float64).numpy())


def nearest(exact: Fraction) -> numpy.float32:
    """Rounds a number to float32, ties to even."""
    with numpy.errstate(over="ignore"):
        guess = numpy.float32(float(exact))
    near = [numpy.nextafter(guess, numpy.float32(end)) for end in (-math.inf, math.inf)]
    return min([guess, *near], key=lambda x: (abs(Fraction(float(x)) - exact), int(x.view(numpy.uint32)) & 1))


def test_a_fused_product_is_rounded_once() -> None:
    numbers = numpy.random.default_rng(0)
    a, b = (numbers.standard_normal(320).astype("f4") for _ in range(2))
    c = (-a * b + numbers.standard_normal(320).astype("f4") * numpy.float32(1e-7)).astype("f4")
    c[:100] = numbers.standard_normal(100).astype("f4") * numpy.float32(1e8)
    got = applied("fma.rn.f32", "f32", {"a": ("f32", a), "b": ("f32", b), "c": ("f32", c)}).view("f4")
    exact = [Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)) for x, y, z in zip(a, b, c, strict=True)]
    assert got.tolist() == [float(nearest(value)) for value in exact]


@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_minimum_and_maximum_keep_or_drop_nan(kind: str) -> None:
    a, b = numpy.repeat(floats(kind, 1), 64), numpy.tile(floats(kind, 1), 64)
    type = f"f{int(kind[1]) * 8}"
    for name, function in (("min", min), ("max", max)):
        for words in ("", ".NaN"):
            got = applied(f"{name}{words}.{type}", type, {"a": (type, a), "b": (type, b)}).view(kind)
            for x, y, found in zip(a.tolist(), b.tolist(), got.tolist(), strict=True):
                if math.isnan(x) or math.isnan(y):
                    expected = math.nan if words or (math.isnan(x) and math.isnan(y)) else y if math.isnan(x) else x
                else:
                    expected = function((x, math.copysign(1, x)), (y, math.copysign(1, y)))[0]
                assert math.isnan(found) == math.isnan(expected)
                assert math.isnan(found) or (found, math.copysign(1, found)) == (expected, math.copysign(1, expected))


@pytest.mark.parametrize("how", ["eq", "ne", "lt", "le", "gt", "ge"])
def test_comparisons_with_nan(how: str) -> None:
    a, b = numpy.repeat(floats("f4", 1), 64), numpy.tile(floats("f4", 1), 64)
    sources = {"a": ("f32", a), "b": ("f32", b)}
    either = numpy.isnan(a) | numpy.isnan(b)
    outcome = getattr(operator, how)(a, b)
    assert (applied(f"setp.{how}.f32", "pred", sources) == (outcome & ~either)).all()
    assert (applied(f"setp.{how}u.f32", "pred", sources) == (outcome | either)).all()
    assert (applied("setp.nan.f32", "pred", sources) == either).all()
    assert (applied("setp.num.f32", "pred", sources) == ~either).all()


@pytest.mark.parametrize("type", ["bf16", "f16"])
def test_half_precision(type: str) -> None:
    x = numpy.concatenate([floats("f4", seed) for seed in range(20)] + [numpy.arange(2**16, dtype="u4").view("f4") + 1])
    dtype = torch.bfloat16 if type == "bf16" else torch.float16
    rounded = torch.from_numpy(x).to(dtype)
    got = torch.from_numpy(applied(f"cvt.rn.{type}.f32", "b16", {"x": ("f32", x)}).view("i2")).view(dtype)
    assert same(got.float().numpy(), rounded.float().numpy())
    both = applied(f"cvt.rn.{type}x2.f32", "b32", {"x": ("f32", x), "y": ("f32", x[::-1])})
    halves = torch.from_numpy(both.view("i2")).view(dtype).float().reshape(-1, 2)
    assert same(halves[:, 1].numpy(), rounded.float().numpy()) and same(
        halves[:, 0].flip(0).numpy(), rounded.float().numpy()
    )
    every = numpy.arange(2**16, dtype="u2")
    back = applied(f"cvt.f32.{type}", "f32", {"x": (type, every)}).view("f4")
    assert same(back, torch.from_numpy(every.view("i2")).view(dtype).float().numpy())


def test_numbers_become_integers_and_back() -> None:
    x = numpy.array(
        [0.5, -0.5, 1.9, -1.9, 2.5, 3e9, -3e9, math.nan, math.inf, -math.inf, 2**31 - 1, -(2**31)] + [7.0] * 20
    )
    got = applied("cvt.rzi.s32.f64", "s32", {"x": ("f64", x)}).view("i4")
    most, least = 2**31 - 1, -(2**31)
    assert got[:12].tolist() == [0, 0, 1, -1, 2, most, least, 0, most, least, most, least]
    whole = patterns(64, 3)
    assert (
        applied("cvt.rn.f64.s64", "f64", {"x": ("s64", whole)}).view("f8")
        == [float(v) for v in whole.view("i8").tolist()]
    ).all()


def test_every_nan_is_the_one_that_devices_make() -> None:
    x = numpy.full(32, numpy.nan, "f4")
    x.view("u4")[:] = 0xFFC01234
    assert (applied("add.rn.f32", "b32", {"x": ("f32", x), "y": ("f32", x)}) == 0x7FFFFFFF).all()


# --- together ---


def test_values_are_shuffled() -> None:
    x, out = numpy.arange(100, 132, dtype="u4"), numpy.zeros((4, 32), "u4")
    lanes = numpy.arange(32)
    body = "mul.wide.u32 %rd9, %r0, 4; add.s64 %rd8, %rd0, %rd9; ld.global.b32 %r5, [%rd8]; add.s64 %rd8, %rd1, %rd9;"
    for k, how in enumerate(
        ("bfly.b32 %r6, %r5, 5, 31", "up.b32 %r6, %r5, 3, 0", "down.b32 %r6, %r5, 3, 31", "idx.b32 %r6, %r5, 9, 31")
    ):
        body += f"shfl.sync.{how}, -1; st.global.b32 [%rd8+{128 * k}], %r6;"
    started(body, x, out)
    expected = [
        lanes ^ 5,
        numpy.where(lanes < 3, lanes, lanes - 3),
        numpy.where(lanes > 28, lanes, lanes + 3),
        lanes * 0 + 9,
    ]
    assert (out == numpy.array(expected) + 100).all()


def test_a_warp_is_added_up_and_asked() -> None:
    out = numpy.zeros(64, "u4")
    body = """redux.sync.add.s32 %r5, %r0, -1; setp.lt.u32 %p1, %r0, 7; vote.sync.ballot.b32 %r6, %p1, -1;
        mul.wide.u32 %rd9, %r0, 8; add.s64 %rd8, %rd0, %rd9; st.global.v2.b32 [%rd8], {%r5, %r6};"""
    started(body, out)
    assert (out.reshape(32, 2) == [31 * 16, 127]).all()


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_are_loaded(transposed: bool) -> None:
    """Row r of matrix m lies at 16 bytes times 8 m + r, and has elements 64 m + 8 r + c."""
    out = numpy.zeros((32, 4, 2), "u2")
    body = f"""shl.b32 %r5, %r0, 4; mul.lo.s32 %r6, %r0, 0x00080008; add.s32 %r6, %r6, 0x00010000;
        add.s32 %r7, %r6, 0x00020002; add.s32 %r8, %r7, 0x00020002; add.s32 %r9, %r8, 0x00020002;
        st.shared.v4.b32 [%r5], {{%r6, %r7, %r8, %r9}}; bar.sync 0;
        ldmatrix.sync.aligned.m8n8.x4{".trans" if transposed else ""}.shared.b16 {{%r10, %r11, %r12, %r13}}, [%r5];
        mul.wide.u32 %rd9, %r0, 16; add.s64 %rd8, %rd0, %rd9; st.global.v4.b32 [%rd8], {{%r10, %r11, %r12, %r13}};"""
    started(body, out)
    for thread in range(32):
        for matrix in range(4):
            for k in range(2):
                row, column = thread // 4, thread % 4 * 2 + k
                row, column = (column, row) if transposed else (row, column)
                assert out[thread, matrix, k] == 64 * matrix + 8 * row + column


def test_threads_that_branch_meet_again() -> None:
    """A loop whose length is the thread's number, in three programs side by side."""
    out = numpy.zeros(96, "u4")
    body = """mov.b32 %r5, 0; mov.b32 %r6, 0; setp.eq.b32 %p1, %r0, 0; @%p1 bra $L_end;
        $L_loop: add.s32 %r6, %r6, %r5; add.s32 %r5, %r5, 1; setp.lt.u32 %p2, %r5, %r0; @%p2 bra $L_loop;
        $L_end: mad.lo.s32 %r7, %r1, 32, %r0; mul.wide.u32 %rd9, %r7, 4; add.s64 %rd8, %rd0, %rd9; st.global.b32 [%rd8], %r6;"""
    tally = started(body, out, programs=3)
    assert (out.reshape(3, 32) == [sum(range(thread)) for thread in range(32)]).all()
    assert tally.blocks.max() == 31
