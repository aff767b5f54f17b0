"""What instructions make of floating-point numbers, against torch and fractions."""

from __future__ import annotations

import math
import operator
from fractions import Fraction
from typing import Any

import numpy
import pytest
import torch
from numpy.typing import NDArray

from tests.triton.ptx.programs import applied, patterns

Array = NDArray[Any]


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
    wide = x.astype("f8")
    assert (applied("add.rn.f64", "b64", {"x": ("f64", wide), "y": ("f64", -wide)}) == 0xFFF8000000000000).all()
