"""Reads PTX: one entry function, as basic blocks of instructions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from tests.triton.ptx.machine.faults import Unsupported

ENDS = ("bra", "ret", "exit", "bar")
"""What a block ends with: whatever decides who goes where, and when."""


class Address(NamedTuple):
    """What stands in square brackets."""

    base: str
    offset: int


Operand = str | tuple[str, ...] | Address
"""A register, constant or label; several in braces; a place in memory."""


class Instruction(NamedTuple):
    opcode: str
    operands: tuple[Operand, ...]
    guard: str | None  # the predicate before it
    negated: bool
    text: str

    @property
    def words(self) -> list[str]:
        return self.opcode.split(".")


class Program(NamedTuple):
    name: str
    parameters: dict[str, int]  # bytes
    threads: int | None  # that it must be launched with
    registers: dict[str, str]  # type by what the name begins with
    shared: tuple[str, ...]  # names of where shared memory begins
    blocks: list[list[Instruction]]
    labels: dict[str, int]

    @property
    def instructions(self) -> Iterator[Instruction]:
        return (instruction for block in self.blocks for instruction in block)

    def smallest_access(self, space: str) -> int:
        """Returns the bytes of the smallest word that is read from or written to a state space."""
        of_space = [i.words for i in self.instructions if i.words[0] in ("ld", "st") and i.words[1] == space]
        sizes = [int(words[-1][1:]) // 8 for words in of_space]
        others = {"ldmatrix": 2, "stmatrix": 2, "cp": 4}
        return min([16, *sizes, *(others.get(i.words[0], 16) for i in self.instructions)])


def parse(text: str) -> Program:
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
    entry = re.search(r"\.entry\s+(\w+)\s*\((.*?)\)(.*?)\{", text, re.DOTALL)
    if entry is None:
        raise Unsupported("a text without an .entry")
    threads = re.search(r"\.reqntid\s+(\d+)", entry[3])
    body = _body(text, entry.end())
    blocks, labels = _blocks(body)
    return Program(
        entry[1],
        {declared.split()[-1]: int(declared.split()[1][2:]) // 8 for declared in _split(entry[2])},
        int(threads[1]) if threads else None,
        {name: type for type, name in re.findall(r"\.reg\s+\.(\w+)\s+(%\w+)<", body)},
        tuple(re.findall(r"\.extern\s+\.shared\s+\.align\s+\d+\s+\.b8\s+(\w+)\[\]", text)),
        blocks,
        labels,
    )


def _body(text: str, begin: int) -> str:
    depth = 1
    for brace in re.finditer(r"[{}]", text[begin:]):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[begin : begin + brace.start()]
    raise Unsupported("an .entry without an end")


_STATEMENT = re.compile(
    r"(?P<label>\$?\w+):(?!:)|(?P<directive>\.(?:loc|file|pragma|reg)\b[^\n]*)|(?P<instruction>[^;]+);"
)
_INSTRUCTION = re.compile(r"(?:@(!?)(%\w+)\s+)?([\w.:]+)\s*(.*)")


def _blocks(body: str) -> tuple[list[list[Instruction]], dict[str, int]]:
    blocks: list[list[Instruction]] = [[]]
    labels: dict[str, int] = {}
    place = 0
    while body[place:].strip():
        place += len(body[place:]) - len(body[place:].lstrip())
        statement = _STATEMENT.match(body, place)
        if statement is None:
            raise Unsupported(body[place:].strip().splitlines()[0])
        place = statement.end()
        if label := statement["label"]:
            if label.startswith("$L__tmp"):  # for debuggers; nobody jumps there
                continue
            if blocks[-1]:
                blocks.append([])
            labels[label] = len(blocks) - 1
        elif text := statement["instruction"]:
            blocks[-1].append(_instruction(" ".join(text.split())))
            if blocks[-1][-1].words[0] in ENDS:
                blocks.append([])
    return blocks, labels


def _instruction(text: str) -> Instruction:
    found = _INSTRUCTION.fullmatch(text)
    if found is None:
        raise Unsupported(text)
    negated, guard, opcode, operands = found.groups()
    opcode = opcode.replace(".shared::cta", ".shared").replace("::", "_")  # both are the program's own shared memory
    return Instruction(opcode, tuple(map(_operand, _split(operands))), guard, bool(negated), text)


def _split(text: str) -> list[str]:
    """Splits at commas that stand in no brackets."""
    return [part.strip() for part in re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{\[])+", text) if part.strip()]


def _operand(text: str) -> Operand:
    if text.startswith("{"):
        return tuple(_split(text[1:-1]))
    if not text.startswith("["):
        return text
    address = re.fullmatch(r"\[\s*([%\w]+)\s*(?:\+\s*(-?\w+))?\s*\]", text)
    if address is None:
        raise Unsupported(f"the address {text}")
    return Address(address[1], int(address[2] or "0", 0))
