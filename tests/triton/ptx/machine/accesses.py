"""Translates what reaches beyond a thread: memory, and the registers of its warp."""

from __future__ import annotations

from tests.triton.ptx.machine.opcodes import Context, Effect, Result, translates
from tests.triton.ptx.machine.parsing import Address, Operand
from tests.triton.ptx.machine.types import u4, u8

_SPACES = {"global": "T.memory", "shared": "T.shared"}
_COUNTS = {"v2": 2, "v4": 4, "x1": 1, "x2": 2, "x4": 4}


def _address(c: Context, operand: Operand, space: str) -> str:
    if not isinstance(operand, Address):
        raise c.unsupported()
    type, kind = ("b64", u8) if space == "global" else ("b32", u4)
    base = c.read_one(operand.base, type)
    if not operand.base.startswith("%"):
        base = f"T.full({base})"
    size = 8 * kind().itemsize
    return f"({base} + u{size // 8}({operand.offset % (1 << size)}))" if operand.offset else base


def _listed(operand: Operand) -> tuple[str, ...]:
    return operand if isinstance(operand, tuple) and not isinstance(operand, Address) else (str(operand),)


def _count(c: Context, values: tuple[str, ...]) -> int:
    """Returns how many words are moved at once; raises where as many are not named."""
    count = next((_COUNTS[word] for word in c.words if word in _COUNTS), 1)
    if len(values) != count:
        raise c.unsupported()
    return count


@translates("ld", "st")
def access(c: Context) -> Effect:
    loads, space = c.words[0] == "ld", c.words[1]
    if loads and space == "param":
        return _parameter(c)
    if space not in _SPACES or [w for w in c.words[2:-1] if w not in ("v2", "v4") and not w.startswith("L1_evict")]:
        raise c.unsupported()
    where, what = (1, 0) if loads else (0, 1)
    values = _listed(c.operands[what])
    count = _count(c, values)
    address, bits = _address(c, c.operands[where], space), int(c.type[1:])
    if loads:
        call = f"{_SPACES[space]}.load(T, {c.site}, {address}, A, {bits}, {count})"
        kind = f".view(i{bits // 8})" if c.type[0] == "s" else ""
        return Effect([Result(name, c.type, f"V[{k}]{kind}") for k, name in enumerate(values)], call)
    given = ", ".join(c.read_one(value, f"b{bits}") for value in values)
    return Effect([], f"{_SPACES[space]}.store(T, {c.site}, {address}, A, {bits}, [{given}])")


@translates("cp")
def copy(c: Context) -> Effect:
    match c.words[1:]:
        case ["async", "commit_group"]:
            return Effect([], "T.copies.commit(A)")
        case ["async", "wait_group"]:
            return Effect([], f"T.copies.wait(T, A, {int(c.register())})")
        case ["async", "ca" | "cg", "shared", "global"]:
            target, source = _address(c, c.operands[0], "shared"), _address(c, c.operands[1], "global")
            size = int(c.register(2), 0)
            filled = c.read(3, "b32") if len(c.operands) > 3 else size
            return Effect([], f"T.copies.start(T, {c.site}, {target}, {source}, A, {size}, {filled})")
    raise c.unsupported()


def _parameter(c: Context) -> Effect:
    address = c.operands[1]
    if not isinstance(address, Address) or address.offset or len(c.words) != 3:
        raise c.unsupported()
    return c.give(f"T.parameter({address.base!r}, {int(c.type[1:])})", f"b{c.type[1:]}")


@translates("ldmatrix", "stmatrix")
def access_matrices(c: Context) -> Effect:
    """Moves 8 x 8 matrices of 16-bit elements between shared memory and a warp's registers."""
    loads = c.words[0] == "ldmatrix"
    if not {*c.words[1:]} <= {"sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "b16"}:
        raise c.unsupported()
    where, what = (1, 0) if loads else (0, 1)
    values = _listed(c.operands[what])
    count = _count(c, values)
    address, transposed = _address(c, c.operands[where], "shared"), "trans" in c.words
    if loads:
        call = f"load_matrices(T, {c.site}, {address}, A, {count}, {transposed})"
        return Effect([Result(name, "b32", f"V[{k}]") for k, name in enumerate(values)], call)
    given = ", ".join(c.read_one(value, "b32") for value in values)
    return Effect([], f"store_matrices(T, {c.site}, {address}, A, [{given}], {transposed})")


@translates("shfl")
def shuffle(c: Context) -> Effect:
    if c.words[1] != "sync" or c.words[2] not in ("up", "down", "bfly", "idx") or c.type != "b32":
        raise c.unsupported()
    value, lane, clamp, members = c.read_all("b32")
    call = f"shuffle(T, {c.site}, {c.words[2]!r}, {value}, {lane}, {clamp}, {members}, A)"
    target, *found = c.register().split("|")
    return Effect([Result(target, "b32", "V[0]"), *(Result(name, "pred", "V[1]") for name in found)], call)


@translates("redux")
def reduce(c: Context) -> Effect:
    if c.words[1] != "sync" or len(c.words) != 4:
        raise c.unsupported()
    value, members = c.read(1, c.type), c.read(2, "b32")
    return Effect([Result(c.register(), c.type, "V")], f"reduce(T, {c.site}, {c.words[2]!r}, {value}, {members}, A)")


@translates("vote")
def vote(c: Context) -> Effect:
    if c.words[1] != "sync" or c.words[2] not in ("ballot", "any", "all"):
        raise c.unsupported()
    value, members = c.read(1, "pred"), c.read(2, "b32")
    return Effect([Result(c.register(), c.type, "V")], f"vote(T, {c.site}, {c.words[2]!r}, {value}, {members}, A)")
