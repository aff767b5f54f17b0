"""Translates what computes numbers from numbers."""

from __future__ import annotations

from tests.triton.ptx.machine.opcodes import Context, Effect, Result, translates
from tests.triton.ptx.machine.types import is_float, width

_SIGNS = {"add": "+", "sub": "-", "mul": "*", "and": "&", "or": "|", "xor": "^"}


@translates("add", "sub")
def add(c: Context) -> Effect:
    if is_float(c.type) or c.type == "f32x2":
        return _float(c)
    c.modifiers()
    type = f"b{width(c.type)}"
    return c.give(f"{c.read(1, type)} {_SIGNS[c.words[0]]} {c.read(2, type)}", type)


def _float(c: Context) -> Effect:
    sign = _SIGNS[c.words[0]]
    if c.type == "f32x2":
        c.modifiers("rn")
        return c.give(f"bits32({c.read(1, 'b64')}.view(f4) {sign} {c.read(2, 'b64')}.view(f4)).view(u8)", "b64")
    if c.words[1:-1] == ["rn", "f32"]:  # a narrow first operand
        return c.give(f"{c.read(1, c.type)}.astype(f4) {sign} {c.read(2, 'f32')}", "f32")
    c.modifiers("rn")
    if c.type not in ("f32", "f64"):
        raise c.unsupported()
    return c.give(f"{c.read(1, c.type)} {sign} {c.read(2, c.type)}")


@translates("mul", "mad")
def multiply(c: Context) -> Effect:
    if is_float(c.type) or c.type == "f32x2":
        if c.words[0] == "mad":
            raise c.unsupported()
        return _float(c)
    (part,) = c.modifiers("lo", "hi", "wide")
    size = width(c.type)
    match part:
        case "lo":
            type = f"b{size}"
            product = f"{c.read(1, type)} * {c.read(2, type)}"
        case "wide":
            type = f"{c.type[0]}{2 * size}"
            kind = f"{'i' if c.type[0] == 's' else 'u'}{size // 4}"
            product = f"{c.read(1, c.type)}.astype({kind}) * {c.read(2, c.type)}.astype({kind})"
        case _:
            type = c.type
            product = f"high_product({c.read(1, c.type)}, {c.read(2, c.type)})"
    return c.give(product if c.words[0] == "mul" else f"{product} + {c.read(3, type)}", type)


@translates("div", "rem")
def divide(c: Context) -> Effect:
    if not is_float(c.type):
        c.modifiers()
        return c.give(f"{'quotient' if c.words[0] == 'div' else 'remainder'}({', '.join(c.read_all(c.type))})")
    if c.words not in (["div", "rn", "f32"], ["div", "rn", "f64"]):
        raise c.unsupported()
    return c.give(f"{c.read(1, c.type)} / {c.read(2, c.type)}")


@translates("sqrt", "rcp")
def root(c: Context) -> Effect:
    if c.words[1:] not in (["rn", "f32"], ["rn", "f64"]):
        raise c.unsupported()
    x = c.read(1, c.type)
    return c.give(f"numpy.sqrt({x})" if c.words[0] == "sqrt" else f"f{width(c.type) // 8}(1) / {x}")


@translates("fma")
def fuse(c: Context) -> Effect:
    if c.words[1:] != ["rn", "f32"]:
        raise c.unsupported()
    return c.give(f"fused({', '.join(c.read_all('f32'))})")


@translates("min", "max")
def extreme(c: Context) -> Effect:
    a, b = c.read_all(c.type)
    if c.type in ("f32", "f64"):
        propagates = "NaN" in c.modifiers("NaN")
        return c.give(f"{'smaller' if c.words[0] == 'min' else 'larger'}({a}, {b}, {propagates})")
    c.modifiers()
    if is_float(c.type):
        raise c.unsupported()
    return c.give(f"numpy.{c.words[0]}imum({a}, {b})")


_SIGN_BITS = {"f16": 0x8000, "bf16": 0x8000, "f16x2": 0x80008000, "bf16x2": 0x80008000}


@translates("neg", "abs")
def negate(c: Context) -> Effect:
    c.modifiers()
    if c.type in _SIGN_BITS:
        type, sign = f"b{width(c.type)}", _SIGN_BITS[c.type]
        kind = f"u{width(c.type) // 8}"
        operation = f"^ {kind}({sign})" if c.words[0] == "neg" else f"& ~{kind}({sign})"
        return c.give(f"{c.read(1, type)} {operation}", type)
    return c.give(f"{'-' if c.words[0] == 'neg' else 'numpy.abs'}({c.read(1, c.type)})")


# --- bits ---


@translates("and", "or", "xor")
def combine(c: Context) -> Effect:
    c.modifiers()
    return c.give(f"{c.read(1, c.type)} {_SIGNS[c.words[0]]} {c.read(2, c.type)}")


@translates("not")
def invert(c: Context) -> Effect:
    c.modifiers()
    return c.give(f"~{c.read(1, c.type)}")


@translates("shl", "shr")
def shift(c: Context) -> Effect:
    c.modifiers()
    type = c.type if c.words[0] == "shr" else f"b{width(c.type)}"
    if c.register(2).isdecimal() and int(c.register(2)) < width(type):
        return c.give(f"{c.read(1, type)} {'<<' if c.words[0] == 'shl' else '>>'} {c.read(2, type)}", type)
    return c.give(f"{'left' if c.words[0] == 'shl' else 'right'}({c.read(1, type)}, {c.read(2, 'u32')})", type)


@translates("shf")
def shift_both(c: Context) -> Effect:
    way, end = c.words[1:3]
    if (way, end) not in [(way, end) for way in "lr" for end in ("wrap", "clamp")] or c.type != "b32":
        raise c.unsupported()
    return c.give(f"funnel({', '.join(c.read_all('b32'))}, {way == 'l'}, {end == 'wrap'})")


@translates("popc", "clz")
def count(c: Context) -> Effect:
    c.modifiers()
    return c.give(f"{'ones' if c.words[0] == 'popc' else 'leading_zeros'}({c.read(1, c.type)})", "u32")


@translates("bfe")
def extract(c: Context) -> Effect:
    c.modifiers()
    return c.give(
        f"{'signed_field' if c.type[0] == 's' else 'field'}({c.read(1, c.type)}, {c.read(2, 'u32')}, {c.read(3, 'u32')})"
    )


@translates("bfi")
def insert(c: Context) -> Effect:
    c.modifiers()
    return c.give(f"with_field({c.read(1, c.type)}, {c.read(2, c.type)}, {c.read(3, 'u32')}, {c.read(4, 'u32')})")


@translates("prmt")
def permute(c: Context) -> Effect:
    c.modifiers()
    return c.give(f"permuted({', '.join(c.read_all('b32'))})")


@translates("lop3")
def look_up(c: Context) -> Effect:
    c.modifiers()
    a, b, d = (c.read(place, "b32") for place in (1, 2, 3))
    return c.give(f"by_table({a}, {b}, {d}, {int(c.register(4), 0)})")


# --- comparisons and choices ---

_ORDERED = {"eq": "==", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_OF_INTEGERS = {**_ORDERED, "ne": "!=", "lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
_OPPOSITE = {"ltu": ">=", "leu": ">", "gtu": "<=", "geu": "<"}


def compared(c: Context, how: str, a: str, b: str, floats: bool) -> str:
    """Returns the expression of a comparison; with a NaN, those of floats are false, but for the unordered ones."""
    if floats and how in _OPPOSITE:
        return f"~({a} {_OPPOSITE[how]} {b})"
    special = {
        "ne": f"({a} < {b}) | ({a} > {b})",
        "neu": f"({a} != {b})",
        "equ": f"~(({a} < {b}) | ({a} > {b}))",
        "num": f"({a} == {a}) & ({b} == {b})",
        "nan": f"({a} != {a}) | ({b} != {b})",
    }
    if floats and how in special:
        return special[how]
    sign = (_ORDERED if floats else _OF_INTEGERS).get(how)
    if sign is None:
        raise c.unsupported()
    return f"{a} {sign} {b}"


@translates("setp")
def compare(c: Context) -> Effect:
    how, *more = c.words[1:-1]
    if c.type in ("bf16x2", "f16x2") and not more:
        return _compare_both(c, how)
    outcome = compared(c, how, c.read(1, c.type), c.read(2, c.type), is_float(c.type))
    if more:
        if len(more) > 1 or more[0] not in ("and", "or", "xor"):
            raise c.unsupported()
        outcome = f"({outcome}) {_SIGNS[more[0]]} {c.read(3, 'pred')}"
    return c.give(outcome, "pred")


def _compare_both(c: Context, how: str) -> Effect:
    targets, values = c.register().split("|"), []
    for place in (1, 2):
        word = c.read(place, "b32")
        halves = (f"{word}.astype(u2)", f"({word} >> u4(16)).astype(u2)")
        values.append([f"brain({half})" if c.type == "bf16x2" else f"{half}.view(f2)" for half in halves])
    outcomes = [compared(c, how, a, b, True) for a, b in zip(*values, strict=True)]
    return Effect([Result(target, "pred", outcome) for target, outcome in zip(targets, outcomes, strict=True)])


@translates("selp")
def select(c: Context) -> Effect:
    c.modifiers()
    return c.give(f"where({c.read(3, 'pred')}, {c.read(1, c.type)}, {c.read(2, c.type)})")
