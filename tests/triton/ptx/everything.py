"""Runs everything that `uses` lists, for every target whose kernels are PTX: ``python -m tests.triton.compiled --run [target ...]``."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from regkernels import backends
from regkernels.backends.triton.architectures import ARCHITECTURES
from tests.triton import record
from tests.triton.kernel import Kernel
from tests.triton.ptx import coverage
from tests.triton.ptx.device import running
from tests.triton.ptx.machine import Fault, Unsupported, translated
from tests.triton.ptx.uses import USES

TARGETS = [architecture for architecture in ARCHITECTURES if architecture.startswith("sm_")]


class Outcome(NamedTuple):
    kernels: int  # that were run
    wrong: list[str]
    unseen: list[str]


def outcome(target: str) -> Outcome:
    """Runs everything for a target and returns what is not as it should be; prints what it has run."""
    wrong: list[str] = []
    unseen: list[str] = []
    with running(target) as device:
        for use in USES:
            with backends.use("reference"):
                expected = use.run()
            print(f"{target}: {use.name}", flush=True)
            try:
                use.check(use.run(), expected)
            except (AssertionError, Fault, Unsupported) as error:
                wrong.append(f"{target}: {use.name}: {error}")
                print(f"  wrong: {error}", flush=True)
        compiled = [Kernel(target, kernel) for kernel in device.compiled()]
        kernels = [kernel for kernel in compiled if kernel.assembly in device.tallies]
        wrong += [f"{target}: {kernel.name}: was not run to its end" for kernel in compiled if kernel not in kernels]
        for kernel in kernels:
            code = translated(kernel.assembly)
            unseen += [f"{target}: {t}" for t in coverage.unseen(kernel.name, code, device.tallies[kernel.assembly])]
        opcodes = set().union(*(translated(kernel.assembly).opcodes for kernel in kernels))
        counts = f"{len(kernels)} kernels, {len(opcodes)} opcodes, {device.launches} launches"
        print(f"{target}: {counts}, {len(wrong)} wrong, {len(unseen)} unseen", flush=True)
    return Outcome(len(kernels), wrong, unseen)


def main(targets: Sequence[str], recorded: bool) -> None:
    found: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for target in targets or TARGETS:
            kernels, wrong, unseen = outcome(target)
            found += wrong + unseen
            if recorded:
                record.write(target, "run", kernels, wrong=len(wrong), unseen=len(unseen))
    print(*found, sep="\n")
    sys.exit(bool(found))
