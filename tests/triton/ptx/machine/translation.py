"""Translates basic blocks into Python functions.

A register is an array with an element per thread. One that holds floating-point numbers wherever it is named is kept as such, all
others as the unsigned integers of their bits; one that is named in a single block, and written there first, is a local variable.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator
from copy import copy
from functools import lru_cache
from typing import Any, NamedTuple

import numpy

from tests.triton.ptx.machine import accesses, arithmetic, conversions, numerics, types, warps
from tests.triton.ptx.machine.faults import Unsupported
from tests.triton.ptx.machine.opcodes import Result, effect_of
from tests.triton.ptx.machine.parsing import ENDS, Instruction, Operand, Program, parse

assert accesses and arithmetic and conversions  # they enter their translators when they are imported

_SPECIAL = {
    "%tid.x": "T.tid",
    "%ntid.x": "T.ntid",
    "%laneid": "T.lane",
    **{f"%{name}.{axis}": f"T.{name}[{k}]" for name in ("ctaid", "nctaid") for k, axis in enumerate("xyz")},
}

Block = Callable[[list[Any], Any, Any], None]
"""Takes all registers, the threads, and a mask of those that are here."""


class End(NamedTuple):
    """How a block ends: by a jump, a barrier, the end of the thread, or by going on to the next block."""

    kind: str  # "bra", "bar", "ret" or ""
    guard: int | None = None  # the register of a predicate
    negated: bool = False
    target: int = -1


class Registers:
    """Knows how each register is kept. Numbers are given in the order in which registers are first named."""

    def __init__(self, program: Program) -> None:
        self._declared = program.registers
        self.shared_symbols = program.shared
        self.numbers: dict[str, int] = {}
        self.types: dict[str, set[str]] = defaultdict(set)
        self.blocks: dict[str, set[int]] = defaultdict(set)
        self._written_first: dict[str, bool] = {}

    def width(self, name: str) -> int:
        return types.width(self._declared[name.rstrip("0123456789")])

    def note(self, name: str, type: str, block: int, writes: bool) -> None:
        self.numbers.setdefault(name, len(self.numbers))
        self.types[name].add(type)
        self.blocks[name].add(block)
        self._written_first.setdefault(name, writes)

    def kept_as(self, name: str) -> str:
        """Returns the NumPy type of a register."""
        if self.types[name] in ({"f32"}, {"f64"}):
            return types.computed(*self.types[name])
        size = self.width(name)
        return "bool_" if size == 1 else types.bits(size)

    def is_local(self, name: str) -> bool:
        return len(self.blocks[name]) == 1 and self._written_first[name]

    def place(self, name: str) -> str:
        return f"r{self.numbers[name]}" if self.is_local(name) else f"R[{self.numbers[name]}]"

    # --- expressions ---

    def read(self, operand: Operand, type: str) -> str:
        """Returns an expression of an operand, in the NumPy type that PTX's type is computed in."""
        assert isinstance(operand, str)
        if operand in _SPECIAL:
            return _SPECIAL[operand]
        if operand in self.shared_symbols:
            return f"{types.computed(type)}(0)"
        if not operand.startswith("%"):
            value = types.constant(operand, type)
            if type == "pred":
                return f"bool_({value})"
            text = f"u{value.itemsize}({value.view(f'u{value.itemsize}')})"
            return text if types.computed(type)[0] == "u" else f"{text}.view({types.computed(type)})"
        place, kept, wanted = self.place(operand), self.kept_as(operand), types.computed(type)
        if kept == wanted and type != "bf16":
            return place
        have, size = self.width(operand), types.width(type)
        if have < size:
            raise Unsupported(f"{operand} as {type}")
        bits = place if have == size else f"{place}.astype({types.bits(size)})"
        return f"brain({bits})" if type == "bf16" else bits if wanted[0] == "u" else f"{bits}.view({wanted})"

    def written(self, result: Result) -> str:
        """Returns an expression of a result as its register is kept."""
        kept, have, size = self.kept_as(result.register), self.width(result.register), types.width(result.type)
        computed = types.computed(result.type)
        text = f"({result.expression})"
        if kept == computed and result.type != "bf16":
            return result.expression
        if size > have or (size < have and types.is_float(result.type)):
            raise Unsupported(f"{result.type} in {result.register}")
        if types.is_float(result.type):
            to_bits = {
                "f32": f"bits32{text}",
                "f64": f"bits64{text}",
                "bf16": f"brain_bits{text}",
                "f16": f"bits16{text}",
            }
            return to_bits[result.type]
        if size < have:
            kind = f"{'i' if result.type[0] == 's' else 'u'}{have // 8}"
            text = f"{text}.astype({kind})"
        return f"{text}.view({kept})"


class Code:
    """A text that can be run: a function for each block, made when it is first needed."""

    def __init__(self, text: str) -> None:
        self.program = parse(text)
        self.registers = Registers(self.program)
        self.sites: list[Instruction] = []
        self._bodies = [list(self._planned(number)) for number in range(len(self.program.blocks))]
        self.ends = [self._end(number, block) for number, block in enumerate(self.program.blocks)]
        counts = numpy.cumsum([len(block) for block in self.program.blocks])
        self.last_sites = (counts - 1).tolist()
        self.granules = {space: self.program.smallest_access(space) for space in ("global", "shared")}
        self.kept = [self.registers.kept_as(name) for name in self.registers.numbers]
        self._functions: dict[tuple[int, bool], Block] = {}

    def replaced(self, site: int, instruction: Instruction | None) -> Code:
        """Returns the same code with another instruction in a place, or none. It must use registers as the old one does."""
        number = bisect_left(self.last_sites, site)
        place = site - self.last_sites[number] + len(self.program.blocks[number]) - 1
        changed = copy(self)
        blocks = list(self.program.blocks)
        new = [] if instruction is None else [instruction]
        blocks[number] = blocks[number][:place] + new + blocks[number][place + 1 :]
        changed.program = self.program._replace(blocks=blocks)
        changed.sites = [*self.sites[:site], instruction or self.sites[site], *self.sites[site + 1 :]]
        changed._bodies = list(self._bodies)
        changed._bodies[number] = [(k, changed.sites[k]) for k, _ in self._bodies[number]]
        changed.ends = list(self.ends)
        changed.ends[number] = changed._end(number, blocks[number])
        changed._functions = {key: block for key, block in self._functions.items() if key[0] != number}
        return changed

    @property
    def opcodes(self) -> set[str]:
        return {instruction.opcode for instruction in self.program.instructions}

    @property
    def guarded(self) -> list[int]:
        """Returns the numbers of the instructions that have a predicate before them."""
        return [number for number, instruction in enumerate(self.sites) if instruction.guard]

    def _planned(self, block: int) -> Iterator[tuple[int, Instruction]]:
        """Notes what is done to registers, and numbers the instructions."""
        for instruction in self.program.blocks[block]:
            site = len(self.sites)
            self.sites.append(instruction)
            ends = instruction.words[0] in ENDS
            if instruction.guard:  # what a block ends with is decided outside of its function
                self.registers.note(instruction.guard, "pred", -1 if ends else block, writes=False)
            if ends:
                continue

            def read(operand: Operand, type: str) -> str:
                if isinstance(operand, str) and operand.startswith("%") and operand not in _SPECIAL:
                    self.registers.note(operand, type, block, writes=False)
                return "_"

            for result in effect_of(instruction, site, read).results:
                if result.register != "_":
                    self.registers.note(result.register, result.type, block, writes=instruction.guard is None)
            yield site, instruction

    def _end(self, number: int, block: list[Instruction]) -> End:
        last = block[-1] if block else None
        if last is None or last.words[0] not in ENDS:
            return End("")
        known = {"bra", "bra.uni", "ret", "exit", "bar.sync"}
        if last.opcode not in known or (last.guard and last.words[0] != "bra"):
            raise Unsupported(f"{last.opcode}, in `{last.text}`")
        if last.words[0] == "bar" and last.operands != ("0",):
            raise Unsupported(f"the barrier of `{last.text}`")
        guard = self.registers.numbers[last.guard] if last.guard else None
        if last.words[0] == "bra":
            return End("bra", guard, last.negated, self.program.labels[str(last.operands[0])])
        return End("bar" if last.words[0] == "bar" else "ret")

    def block(self, number: int, masked: bool) -> Block:
        """Returns the function of a block; ``masked``: where not all threads are in it."""
        key = (number, masked)
        if key not in self._functions:
            source = self.source(number, masked)
            space = dict(_NAMES)
            exec(compile(source, f"<{self.program.name}, block {number}>", "exec"), space)
            self._functions[key] = space["block"]
        return self._functions[key]

    def source(self, number: int, masked: bool) -> str:
        lines = ["def block(R, T, M):", "    A = M"]
        for site, instruction in self._bodies[number]:
            lines += [f"    {line}" for line in self._statement(site, instruction, masked)]
        return "\n".join(lines)

    def _statement(self, site: int, instruction: Instruction, masked: bool) -> Iterator[str]:
        registers = self.registers
        effect = effect_of(instruction, site, registers.read)
        if instruction.guard:
            predicate = ("~" if instruction.negated else "") + registers.place(instruction.guard)
            yield f"A = T.guarded({site}, {predicate}, M)"
        if effect.call:
            yield f"V = {effect.call}" if effect.results else effect.call
        results = [result for result in effect.results if result.register != "_"]
        values = [registers.written(result) for result in results]
        if len(values) > 1:
            yield f"{', '.join(f'V{k}' for k in range(len(values)))} = {', '.join(values)}"
            values = [f"V{k}" for k in range(len(values))]
        for result, value in zip(results, values, strict=True):
            place = registers.place(result.register)
            if instruction.guard:
                value = f"merged(A, {value}, {place})"
            elif masked and not registers.is_local(result.register):
                value = f"where(M, {value}, {place})"
            yield f"{place} = {value}"
        if instruction.guard:
            yield "A = M"


def merged(active: Any, new: Any, old: Any) -> Any:
    return new if active is None else numpy.where(active, new, old)


_NAMES: dict[str, Any] = {
    "numpy": numpy,
    "merged": merged,
    "bool_": numpy.bool_,
    **{name: value for module in (types, numerics, warps) for name, value in vars(module).items() if name[0] != "_"},
}


@lru_cache(maxsize=256)
def translated(text: str) -> Code:
    return Code(text)
