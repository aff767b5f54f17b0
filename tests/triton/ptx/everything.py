"""Runs everything that `uses` lists, for every target whose kernels are PTX: ``python -m tests.triton.compiled --run [target ...]``."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

from regkernels import backends
from regkernels.backends.triton.architectures import ARCHITECTURES
from tests.triton.kernel import Kernel
from tests.triton.ptx import coverage
from tests.triton.ptx.device import running
from tests.triton.ptx.machine import Fault, Unsupported, translated
from tests.triton.ptx.uses import USES

TARGETS = [architecture for architecture in ARCHITECTURES if architecture.startswith("sm_")]


def wrong(target: str) -> list[str]:
    """Returns what is not as it should be for a target; prints what it has run."""
    found = []
    with running(target) as device:
        for use in USES:
            with backends.use("reference"):
                expected = use.run()
            try:
                use.check(use.run(), expected)
            except (AssertionError, Fault, Unsupported) as error:
                found.append(f"{use.name}: {error}")
            print(f"{target}: {use.name}", flush=True)
        kernels = [Kernel(target, compiled) for compiled in device.compiled()]
        for kernel in kernels:
            found += coverage.unseen(kernel.name, translated(kernel.assembly), device.tallies[kernel.assembly])
        opcodes = set().union(*(translated(kernel.assembly).opcodes for kernel in kernels))
        print(
            f"{target}: {len(kernels)} kernels, {len(opcodes)} opcodes, {device.launches} launches, {len(found)} wrong"
        )
    return [f"{target}: {text}" for text in found]


def main(targets: Sequence[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [text for target in targets or TARGETS for text in wrong(target)]
    print(*found, sep="\n")
    sys.exit(bool(found))
