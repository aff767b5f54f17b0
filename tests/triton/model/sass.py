"""Reads NVIDIA's machine code, as ``cuobjdump -sass`` writes it: instructions, the units that execute them, and what they wait for."""

from __future__ import annotations

import itertools
import re
from typing import NamedTuple

_FIRST_LINE = re.compile(
    r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;\s*/\* 0x[0-9a-f]{16} \*/"
)
_SECOND_LINE = re.compile(r"^\s*/\* 0x([0-9a-f]{16}) \*/")

_NAMES = {
    "FP32": "FADD FMUL FFMA FCHK FADD2 FMUL2 FFMA2 HADD2 HFMA2 HMUL2 F2FP I2FP",
    "FP64": "DADD DMUL DFMA DSETP DMNMX",
    "MUFU": "MUFU",
    "CVT": "F2F F2I I2F FRND I2I",
    "SMEM": "LDS STS LDSM STSM SHFL",
    "CTRL": "BRA BSSY BSYNC CALL RET EXIT WARPSYNC BREAK YIELD BAR NOP BMOV DEPBAR LDGDEPBAR ERRBAR MEMBAR",
    "LOAD": "LDG LD LDGSTS",
    "STORE": "STG ST",
    "LDC": "LDC ULDC LDCU",
}
_UNITS = {name: unit for unit, names in _NAMES.items() for name in names.split()}

UNITS = (*_NAMES, "INT")
"""What executes an instruction. INT is everything else: integers, predicates, comparisons of whatever type but float64, moves."""

_BYTES = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


class Instruction(NamedTuple):
    """Holds one instruction, and how the hardware is told to wait: barriers are numbers from 0, of which there are six."""

    address: int
    predicate: str
    opcode: str
    operands: str
    stall: int  # cycles before the warp's next one
    sets: int | None  # the barrier that it frees when its result is there
    frees: int | None  # when it has read its operands
    waits: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def unit(self) -> str:
        return _UNITS.get(self.name, "INT")

    @property
    def is_of_64_bits(self) -> bool:
        """Tells whether a conversion is from or to a type of that size."""
        return self.unit == "CVT" and "64" in self.opcode

    @property
    def bytes(self) -> int:
        """Returns what a thread loads or stores in device memory."""
        if self.unit not in ("LOAD", "STORE"):
            return 0
        return next((_BYTES[word] for word in self.opcode.split(".") if word in _BYTES), 4)

    @property
    def is_wide(self) -> bool:
        return self.bytes == 16

    @property
    def target(self) -> int | None:
        """Returns where a branch leads, but for one that is taken only where the threads of a warp have parted."""
        found = re.findall(r"0x([0-9a-f]+)", self.operands) if self.name == "BRA" and ".DIV" not in self.opcode else []
        return int(found[-1], 16) if found else None

    @property
    def is_conditional(self) -> bool:
        return bool(self.predicate) or self.operands.lstrip("!").startswith(("P", "UP"))


def parse(text: str) -> list[Instruction]:
    """Returns the instructions of a function; the control bits are the upper ones of the second word."""
    lines = text.splitlines()
    found = []
    for line, following in itertools.pairwise(lines):
        first, second = _FIRST_LINE.match(line), _SECOND_LINE.match(following)
        if first and second:
            address, predicate, opcode, operands = first.groups()
            control = int(second.group(1), 16) >> 41
            sets, frees = ((control >> shift) & 7 for shift in (5, 8))
            waits = tuple(barrier for barrier in range(6) if control >> 11 + barrier & 1)
            found.append(
                Instruction(
                    int(address, 16),
                    predicate or "",
                    opcode,
                    operands,
                    control & 15,
                    sets if sets != 7 else None,
                    frees if frees != 7 else None,
                    waits,
                )
            )
    return found
