"""Lists who translates an instruction into Python, by the first word of its opcode."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tests.triton.ptx.machine.faults import Unsupported
from tests.triton.ptx.machine.parsing import Instruction, Operand


class Result(NamedTuple):
    """An expression of what is written into a register, computed as a type says."""

    register: str
    type: str
    expression: str


class Effect(NamedTuple):
    """What an instruction does: it calls something, if anything, whose value is V in the expressions of its results.

    Where a call needs to know which threads take part, it says A.
    """

    results: list[Result]
    call: str = ""


class Context:
    """What a translator sees of an instruction: its words and operands, and expressions of what they hold."""

    def __init__(self, instruction: Instruction, site: int, read: Callable[[Operand, str], str]) -> None:
        self.words = instruction.words
        self.type = self.words[-1]
        self.operands = instruction.operands
        self.site = site
        self._instruction = instruction
        self._read = read

    def read(self, place: int, type: str) -> str:
        """Returns an expression of an operand as a type."""
        return self._read(self.operands[place], type)

    def read_all(self, type: str, begin: int = 1) -> list[str]:
        return [self.read(place, type) for place in range(begin, len(self.operands))]

    def read_one(self, operand: Operand, type: str) -> str:
        return self._read(operand, type)

    def register(self, place: int = 0) -> str:
        operand = self.operands[place]
        if not isinstance(operand, str):
            raise self.unsupported()
        return operand

    def give(self, expression: str, type: str = "") -> Effect:
        """Returns what writes an expression into the first operand."""
        return Effect([Result(self.register(), type or self.type, expression)])

    def modifiers(self, *allowed: str) -> set[str]:
        """Returns the words between the first and the last; none but those that are allowed."""
        found = set(self.words[1:-1])
        if not found <= set(allowed):
            raise self.unsupported()
        return found

    def unsupported(self) -> Unsupported:
        return Unsupported(f"{self._instruction.opcode}, in `{self._instruction.text}`")


Translator = Callable[[Context], Effect]

TRANSLATORS: dict[str, Translator] = {}


def translates(*names: str) -> Callable[[Translator], Translator]:
    def enter(translator: Translator) -> Translator:
        TRANSLATORS.update(dict.fromkeys(names, translator))
        return translator

    return enter


def effect_of(instruction: Instruction, site: int, read: Callable[[Operand, str], str]) -> Effect:
    context = Context(instruction, site, read)
    translator = TRANSLATORS.get(context.words[0])
    if translator is None:
        raise context.unsupported()
    return translator(context)
