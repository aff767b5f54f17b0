"""A compiled kernel: what it is made for, and what can be read in the code that the compiler made."""

from __future__ import annotations

import re
import subprocess
import tempfile
from functools import cached_property
from typing import NamedTuple

import torch
from triton import knobs
from triton.compiler import CompiledKernel

import regkernels.backends.triton as backend
from regkernels import reference
from regkernels.backends.triton.kernels import columns

BY_GROUPS_FUNCTIONS = ("update_resident", "update_groups")

_TORCH_DTYPES = {type: dtype for dtype, type in backend.TYPES.items()}
_COLUMNS = {columns.WEIGHT.value: "weight", columns.GRADIENT.value: "gradient"}


class Usage(NamedTuple):
    registers: int  # per thread
    shared: int  # bytes per program
    spilled: int  # registers, or bytes per thread of memory in their place


class Kernel:
    """One function, compiled with one set of constants for one architecture."""

    def __init__(self, architecture: str, compiled: CompiledKernel) -> None:
        self.architecture = architecture
        self.compiled = compiled
        self.function: str = compiled.name
        source = compiled.src
        self._constants = {source.fn.arg_names[index]: value for (index,), value in source.constants.items()}
        self._signature = source.signature

    @property
    def is_amd(self) -> bool:
        return self.architecture.startswith("gfx")

    @property
    def rule(self) -> str:
        return self._constants["RULE"].__name__

    @property
    def penalty(self) -> str:
        return self._constants.get("PENALTY", "plain")

    @property
    def metric(self) -> str:
        return self._constants["METRIC"].__name__

    @property
    def formula(self) -> str:
        """The function that a kernel was given, if any."""
        return self._constants["FUNCTION"].__name__ if "FUNCTION" in self._constants else ""

    @property
    def stats(self) -> bool:
        return self._constants["STATS"]

    @property
    def rounding(self) -> str:
        return self._constants["ROUNDING"]

    @property
    def state_dtype(self) -> torch.dtype:
        return _TORCH_DTYPES[self._constants["STATE"]]

    @property
    def shifted(self) -> bool:
        return self._constants.get("SHIFTED", False)

    @property
    def is_step(self) -> bool:
        return self.function in ("update", *BY_GROUPS_FUNCTIONS)

    @property
    def is_wide(self) -> bool:
        """Whether the host has promised that 16 bytes of groups can be moved at a time."""
        return self._constants.get("WIDE", False)

    @property
    def stage(self) -> str:
        return self._constants.get("STAGE", "whole")

    @property
    def draws(self) -> int:
        """How many random numbers a step takes for each element."""
        if not self.is_step:
            return 0
        narrow = self.state_dtype == torch.bfloat16
        return (self.rounding == "stochastic") + narrow * len(reference.RULES[self.rule].state_names)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; where a kernel reads sums only, of what it writes."""
        if "STORAGE" in self._constants:
            return _TORCH_DTYPES[self._constants["STORAGE"]]
        return torch.float32 if "*fp32" in self._signature.values() else torch.float64

    @property
    def block(self) -> int:
        """Elements that a program takes at a time."""
        return self._constants["BLOCK"]

    @property
    def warps(self) -> int:
        return self.compiled.metadata.num_warps

    @property
    def name(self) -> str:
        constants = self._constants
        words = [self.function]
        words += [constants[key].__name__ for key in ("RULE", "FUNCTION", "METRIC") if key in constants]
        words += [f"of {constants[key]}" for key in ("STRIP",) if key in constants]
        words += [self.stage] if self.stage != "whole" else []
        words += ["wide"] if self.is_wide else []
        if self.is_step:
            words += [self.penalty] if self.penalty != "plain" else []
            words += [self.rounding] if self.rounding != "nearest" else []
            words += ["narrow"] if self.state_dtype == torch.bfloat16 else []
            words += ["shifted"] if self.shifted else []
        words += [_COLUMNS[constants[key].value] for key in ("COLUMN",) if key in constants]
        words += [constants[key] for key in ("WANTED",) if key in constants]
        words += [f"by {self._signature['scale'][1:]}"] if constants.get("SCALED") else []
        words += ["with sums"] if constants.get("STATS") else []
        words += ["in pairs"] if constants.get("PAIRS") else []
        words += ["that may be left out"] if constants.get("MAY_SKIP") else []
        return " ".join([*words, str(self.dtype).removeprefix("torch.")])

    def __str__(self) -> str:
        return f"{self.name} for {self.architecture}"

    # --- what the compiler made of it ---

    def text(self, stage: str) -> str:
        return self.compiled.asm[stage]

    @property
    def assembly(self) -> str:
        return self.text("amdgcn" if self.is_amd else "ptx")

    @cached_property
    def machine_code(self) -> str:
        """What ptxas made of PTX, in words. AMD's assembly is that already."""
        return self.assembly if self.is_amd else self._cuobjdump("-sass")

    def count(self, pattern: str) -> int:
        """In the assembly."""
        return len(re.findall(pattern, self.assembly))

    @property
    def wide_loads(self) -> int:
        """Loads of 16 bytes per thread, into registers or shared memory. On AMD the compiler also reads tables that way, once per program."""
        return self.count(
            r"(?:global|buffer)_load_dwordx4" if self.is_amd else r"ld\.global\S*\.v(?:4\.b32|2\.b64)|cp\.async\.cg\."
        )

    @property
    def wide_stores(self) -> int:
        return self.count(r"(?:global|buffer)_store_dwordx4" if self.is_amd else r"st\.global\S*\.v(?:4\.b32|2\.b64)")

    @cached_property
    def spilled_scalars(self) -> int:
        """On AMD: scalars that wait in a lane of a vector register, not in memory."""
        (count,) = re.findall(r"\.sgpr_spill_count: +(\d+)", self.assembly) if self.is_amd else ["0"]
        return int(count)

    @cached_property
    def usage(self) -> Usage:
        if self.is_amd:
            numbers = dict(re.findall(r"^ +\.(\w+): +(\d+)$", self.assembly, re.MULTILINE))
            registers = "vgpr_count"
            spilled = ("vgpr_spill_count", "sgpr_spill_count", "private_segment_fixed_size")
        else:
            numbers = dict(re.findall(r"(\w+):(\d+)", self._cuobjdump("-res-usage")))
            registers = "REG"
            spilled = ("STACK", "LOCAL")
        shared = self.compiled.metadata.shared
        spills = sum(int(numbers[name]) for name in spilled)
        if not self.is_amd and spills and not re.search(r"\b(?:STL|LDL)\b", self.machine_code):
            spills = 0  # ptxas keeps a frame that nothing is stored in
        return Usage(int(numbers[registers]), shared, spills)

    def _cuobjdump(self, option: str) -> str:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.compiled.asm["cubin"])
            file.flush()
            command = [knobs.nvidia.cuobjdump.path, option, file.name]
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout
