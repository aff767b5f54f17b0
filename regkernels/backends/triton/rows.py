"""Puts rows of hyper-parameters into device memory, and has the device compute there what only it knows: one launch for all rows."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from regkernels.backends.triton import architectures
from regkernels.backends.triton.architectures import Shape
from regkernels.backends.triton.cuts import Integers
from regkernels.backends.triton.kernels.deferred import INSTRUCTION, INSTRUCTIONS, PROGRAM, compute_rows
from regkernels.backends.triton.launch import empty, launch
from regkernels.backends.triton.tables import BatchMemory
from regkernels.table.deferred import Deferred
from regkernels.table.hyper import Hyper, deferred

_FIELDS = len(Hyper._fields)
_NUMBERS = {name: number for number, name in enumerate(INSTRUCTIONS)}
_NONE = (0,) * (INSTRUCTION.value - 1)
_READS = {torch.float32: "float32", torch.float64: "float64"}
_FLOAT, _BITS = struct.Struct("d"), struct.Struct("q")
_SHAPE = Shape(1, 1)


def table_of_rows(rows: list[Hyper], memory: BatchMemory, device: torch.device) -> Tensor:
    """Returns the table of hyper-parameters, float64 (rows, fields) one after the other, in device memory."""
    if not any(isinstance(value, (Tensor, Deferred)) for row in rows for value in row):
        return memory.rows(rows, lambda: numpy.array(rows, dtype=numpy.float64))
    written = Written.of(rows, device)
    uploaded = memory.rows(written.image.tobytes(), lambda: written.image)
    table, programs = uploaded[: written.begin].view(torch.float64), uploaded[written.begin :]
    block = architectures.of_device(device).block(_SHAPE, torch.float64)
    grid = (len(rows), -(-max(written.counts) // block))
    launch(compute_rows, grid, _SHAPE, torch.float64, programs, empty(device, written.slots), table)
    return table


class Written(NamedTuple):
    """Holds what the kernel is given: all rows, as far as the host knows them, and behind them a program for each `Hyper`."""

    image: Integers  # float64 in its bits, then PROGRAM of each, then instructions and inputs
    begin: int  # of the programs
    slots: int
    counts: list[int]
    tensors: list[Tensor]  # which the programs read: to be kept until the kernel is launched

    @classmethod
    def of(cls, rows: Sequence[Hyper], device: torch.device) -> Written:
        """Writes down programs for all rows."""
        codes = [_Code(row, device) for row in rows]
        counts = [code.count for code in codes]
        total = sum(counts)
        known = numpy.zeros((total + total % 2, _FIELDS))  # an even number, or the programs are not aligned
        programs, parts, begin, row, slots = [], [], len(codes) * len(PROGRAM), 0, 0
        for code in codes:
            known[row : row + code.count] = code.known
            length, own = len(code.instructions), code.table()
            programs.append([begin, length, begin + length * INSTRUCTION.value, code.count, row, slots])
            parts.append(own)
            begin, row, slots = begin + len(own), row + code.count, slots + code.count * length
        image = numpy.concatenate([known.view(numpy.int64).ravel(), numpy.array(programs).ravel(), *parts])
        return cls(image, known.size, slots, counts, [tensor for code in codes for tensor in code.tensors])


class _Code:
    """Lists the instructions that compute what only a device knows of a row, each operation once.

    Attributes:
        known: the fields that the host knows; 0 for the others.
        inputs: of each the number for the first row, the bits of a constant or an address, and by how much it grows from row to row.
    """

    def __init__(self, row: Hyper, device: torch.device) -> None:
        self.count, self._device = row.multiplicity, device
        self.known = [0.0 if isinstance(value, (Tensor, Deferred)) else value for value in row]
        self.instructions: list[tuple[int, ...]] = []
        self.inputs: list[tuple[int, int]] = []
        self.tensors: list[Tensor] = []
        self._numbers: dict[Deferred, int] = {}
        self._constants: dict[int, int] = {}  # by their bits
        for field, value in enumerate(row):
            if isinstance(value, (Tensor, Deferred)):
                self._append("store", self._number(deferred(value)), field)

    def table(self) -> Integers:
        """Returns the instructions, and behind them each input for all rows."""
        inputs = numpy.array(self.inputs, dtype=numpy.int64).reshape(-1, 2, 1)
        of_rows = inputs[:, 0] + inputs[:, 1] * numpy.arange(self.count)
        return numpy.concatenate([numpy.array(self.instructions, dtype=numpy.int64).ravel(), of_rows.ravel()])

    def _number(self, value: float | Deferred) -> int:
        """Returns the number of the instruction that yields a value; adds it, and those before it, where there is none."""
        if isinstance(value, Deferred):
            if value not in self._numbers:
                self._numbers[value] = self._yielding(value)
            return self._numbers[value]
        bits = int(_BITS.unpack(_FLOAT.pack(value))[0])
        if bits not in self._constants:
            self._constants[bits] = self._input("constant", bits)
        return self._constants[bits]

    def _yielding(self, value: Deferred) -> int:
        """Adds what yields a number."""
        if value.tensor is None:
            return self._append(value.operation, *map(self._number, value.operands))
        tensor = value.tensor.to(self._device)
        self.tensors.append(tensor)
        return self._input(_READS[tensor.dtype], tensor.data_ptr(), tensor.element_size() if value.count > 1 else 0)

    def _input(self, name: str, first: int, stride: int = 0) -> int:
        self.inputs.append((first, stride))
        return self._append(name, len(self.inputs) - 1)

    def _append(self, name: str, *operands: int) -> int:
        self.instructions.append((_NUMBERS[name], *operands, *_NONE[len(operands) :]))
        return len(self.instructions) - 1
