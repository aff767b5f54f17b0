"""Small programs in PTX, for tests of the machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy
from numpy.typing import NDArray

from tests.triton.ptx.machine import Region, Tally, run, translated
from tests.triton.ptx.machine.types import width

Array = NDArray[Any]

THREADS = 32


def entry(body: str, pointers: int = 1, threads: int = THREADS) -> str:
    """Returns a text in which ``%rd0`` and so on are its pointers, ``%r0`` is the thread, and ``%r1`` the program."""
    parameters = ", ".join(f".param .u64 tried_param_{k}" for k in range(pointers))
    loads = "\n".join(f"ld.param.b64 %rd{k}, [tried_param_{k}];" for k in range(pointers))
    return f"""
        .extern .shared .align 16 .b8 global_smem[];
        .visible .entry tried({parameters})
        .reqntid {threads}
        {{
        .reg .pred %p<9>; .reg .b16 %rs<9>; .reg .b32 %r<19>; .reg .b64 %rd<39>;
        {loads}
        mov.u32 %r0, %tid.x;
        mov.u32 %r1, %ctaid.x;
        {body}
        ret;
        }}
        """.replace("; .reg", ";\n.reg")


def started(body: str, *arrays: Array, programs: int = 1, threads: int = THREADS, **more: Any) -> Tally:
    """Runs `entry` with pointers to arrays, which may be read and written."""
    regions = [Region.of(f"array {k}", array, writable=True) for k, array in enumerate(arrays)]
    pointers = [numpy.uint64(array.ctypes.data) for array in arrays]
    return run(
        translated(entry(body, len(arrays), threads)), (programs,), pointers, regions, **{"shared": 1024, **more}
    )


REGISTERS = {1: "%p", 16: "%rs", 32: "%r", 64: "%rd"}


def place(array: int, size: int, into: str, index: str = "%r0") -> str:
    """Returns what computes the address of an element for each thread."""
    return f"mul.wide.u32 {into}, {index}, {size // 8}; add.s64 {into}, {into}, %rd{array};"


def applied(opcode: str, result: str, sources: Mapping[str, tuple[str, Array]], form: str = "") -> Array:
    """Returns what an instruction makes of arrays of equal length, a multiple of 32.

    ``sources``: the type and values of each operand; ``form``: the operands as text, where they are not just those.
    """
    inputs = [numpy.array(values) for _, values in sources.values()]
    size = 32 if result == "pred" else width(result)
    out = numpy.zeros(len(inputs[0]), f"u{size // 8}")
    lines = [f"mad.lo.s32 %r2, %r1, {THREADS}, %r0;"]
    names = {}
    for k, (name, (type, _)) in enumerate(sources.items()):
        names[name] = f"{REGISTERS[width(type)]}{k + 5}"
        load = f"ld.global.b{width(type)} {names[name]}, [%rd20];"
        lines += [place(k, width(type), "%rd20", "%r2"), load]
    target = f"{REGISTERS[width(result)]}4"
    operands = form.format(**names) if form else ", ".join(names.values())
    lines += [f"{opcode} {target}, {operands};"]
    if result == "pred":
        lines += [f"selp.b32 %r3, 1, 0, {target};"]
        target = "%r3"
    lines += [place(len(inputs), size, "%rd20", "%r2"), f"st.global.b{size} [%rd20], {target};"]
    started("\n".join(lines), *inputs, out, programs=len(out) // THREADS)
    return out


def patterns(bits: int, seed: int) -> Array:
    """64 words: around every power of two that sign, overflow and shifts turn on, and random ones."""
    chosen = [0, 1, 2, 31, 32, 33, 63, 64, 0x7FFF, 0x8000, 0xFFFF, (1 << bits - 1) - 1, 1 << bits - 1, (1 << bits) - 1]
    numbers = numpy.random.default_rng(seed)
    some = [*numbers.permutation(numpy.array(chosen, dtype=object) % (1 << bits)), *numbers.integers(0, 1 << 16, 50)]
    spread = [int(x) if k < 30 else int(x) * 0x9E3779B97F4A7C15 % (1 << bits) for k, x in enumerate(some)]
    return numpy.array([x % (1 << bits) for x in spread], f"u{bits // 8}")
