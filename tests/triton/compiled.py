"""Every kernel, compiled for every architecture, and what can be read in the result.

``python -m tests.triton.compiled [architecture ...]`` prints a table of it; ``--cache FOLDER`` keeps what was compiled. With ``--run``
the kernels that are PTX are run on the CPU instead.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache, cached_property, partial
from itertools import product
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from triton import knobs
from triton.compiler import CompiledKernel

import regkernels as rk
import regkernels.backends.triton as backend
from regkernels import reference
from regkernels.backends.triton.architectures import ARCHITECTURES
from regkernels.backends.triton.kernels import columns
from tests.support import cases, engine
from tests.support.random_numbers import placed
from tests.triton.driver import present
from tests.triton.updates import ALWAYS, BY_GROUPS, SHIFTED, WITH_SUMS, Update, taken

OPERATORS = [
    lambda x: rk.prox.positive(x, 1.0),
    lambda x: rk.prox.weighted_l1(x, 1.0, torch.ones_like(x)),
    *(partial(getattr(rk.prox, name), strength=1.0) for name in reference.family.FAMILY),
]
"""One for each penalty but that by groups."""

DTYPES = {"l_half": torch.float64, "log_sum": torch.bfloat16}
PENALTIES = {
    of.formulas.name: (getattr(rk, f"{key}_penalty"), DTYPES.get(key, torch.float32))
    for key, of in reference.family.FAMILY.items()
}
"""By what `regkernels.reference.VALUES` calls their formulas, and the dtype for which they are compiled."""

BY_GROUPS_FUNCTIONS = ("update_resident", "update_groups")

METRICS = {"constant": torch.optim.SGD, "root": torch.optim.Adam}


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
        words += [f"by {self._signature['scale'][1:]}"] if constants.get("SCALED") else []
        words += ["with sums"] if constants.get("STATS") else []
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


def _use_everything(take: Callable[[list[Update]], list[Update]]) -> None:
    def take_step(update: Update, shape: tuple[int, ...] = (100,), **options: Any) -> nn.Parameter:
        param = nn.Parameter(torch.ones(shape, dtype=update.dtype))
        param.grad = torch.ones_like(param)
        states = None if update.wide else torch.bfloat16
        engine.make(update.rule, [param], lr=0.1, param_rounding=update.rounding, state_dtype=states, **options).step()
        return param

    always = take(ALWAYS)
    for update in take(WITH_SUMS):
        take_step(update, stats=True)
    for update in always:
        take_step(update, stats=True)
    with placed({100: [(3, 100)]}):
        for update in SHIFTED:
            take_step(update, stats=True)
    for update, dim in product(take(BY_GROUPS), (0, 1)):
        take_step(update, (2, 104), stats=True, max_norm=1.0, group_dim=dim)
    for shape, dim in ((2, 100), 0), ((2, 100), 1), ((2, 5000), 0), ((2, 66_000), 0):
        take_step(Update("adam", torch.float32), shape, stats=True, max_norm=1.0, group_dim=dim)
    params = list({update.dtype: take_step(update, max_grad_norm=1.0) for update in always}.values())
    for kind in METRICS.values():
        optimizer = kind(params)
        rk.attach_prox(optimizer, 0.1, 0.1)
        optimizer.step()
    for of_one_sum in (params, params[1:]):  # with a float64 among them the sum is one, else a float32
        rk.elastic_net_penalty(of_one_sum, 1.0, 1.0).backward()
    ones = {dtype: torch.ones(10, 10, dtype=dtype, requires_grad=True) for dtype in cases.DTYPES}
    for penalty, dtype in PENALTIES.values():
        penalty(ones[dtype], 1.0).backward()
    rk.l1_penalty(ones[torch.bfloat16], 1.0, ones[torch.float32].detach()).backward()
    for dim in (1, "tensor"):  # neighbours in memory are of different groups, and of one
        rk.group_l1_penalty(ones[torch.float32], 1.0, dim).backward()
    for param in params:
        rk.prox.soft_threshold(param.detach(), 1.0)
    for operator in OPERATORS:
        operator(params[1].detach())


@cache
def compiled_for(architecture: str, whole: bool = False, kept: str | None = None) -> list[Kernel]:
    """``kept``: the folder of a cache of Triton's, which is filled."""
    with present(architecture, kept) as device:
        _use_everything(list if whole else partial(taken, architecture))
    return [Kernel(architecture, kernel) for kernel in device.compiled()]


def table(architectures: list[str], kept: str | None = None) -> Table:
    result = Table(
        "kernel",
        title="Registers per thread, bytes of shared memory, 16-byte loads + stores",
        caption="Spills would stand in brackets.",
    )
    rows: dict[str, list[str]] = {}
    for architecture in architectures:
        result.add_column(architecture, justify="right")
        for kernel in compiled_for(architecture, whole=True, kept=kept):
            registers, shared, spilled = kernel.usage
            cell = f"{registers:3} {shared:6,} {kernel.wide_loads:2}+{kernel.wide_stores}"
            rows.setdefault(kernel.name, []).append(f"{cell} ({spilled})" if spilled else cell)
    for name, cells in rows.items():
        result.add_row(name, *cells)
    return result


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.triton.compiled")
    parser.add_argument("architecture", nargs="*", help=f"of {', '.join(ARCHITECTURES)}; default: all")
    parser.add_argument("--cache", metavar="FOLDER", help="keep what is compiled, for TRITON_CACHE_DIR on a device")
    parser.add_argument("--run", action="store_true", help="run the PTX of NVIDIA's architectures on the CPU instead")
    options = parser.parse_args(arguments)
    if options.run:
        from tests.triton.ptx import everything  # which imports this module

        everything.main(options.architecture)
    found = table(options.architecture or list(ARCHITECTURES), options.cache)
    Console(width=None if sys.stdout.isatty() else 160).print(found)


if __name__ == "__main__":
    main(sys.argv[1:])
