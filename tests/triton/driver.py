"""A Triton driver for a device that is not there: kernels are compiled for it as for any other, and never run.

The package launches through it on CPU tensors. So what is compiled is what would be launched: the constants and the
number of warps come from the package, signature and specialisation from Triton's own launcher.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import JITFunction, driver

import regkernels.backends.triton as backend
from regkernels import backends
from regkernels.backends.triton import architectures
from regkernels.backends.triton.architectures import ARCHITECTURES
from regkernels.backends.triton.kernels import deferred, elementwise, group_values, groups, proximal, step, sums, values

FUNCTIONS = [
    function
    for module in (step, sums, elementwise, proximal, values, group_values, groups, deferred)
    for function in vars(module).values()
    if isinstance(function, JITFunction)
]
"""Everything in Triton's language that those modules know; what is launched is among it."""


def target(architecture: str) -> GPUTarget:
    maker, arch = ("hip", architecture) if architecture.startswith("gfx") else ("cuda", int(architecture[3:]))
    return GPUTarget(maker, arch, ARCHITECTURES[architecture].warp_size)


class AbsentDevice:
    """One instance is one device. Triton remembers what it has compiled by device, so a new instance begins with nothing."""

    def __init__(self, architecture: str) -> None:
        self.architecture = architecture
        self.launches = 0
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 65536},  # of gfx942, the least of all
            load_binary=lambda *binary: (None, None, 0, 0, 1024),  # module, function, registers, spills, threads
        )

    def compiled(self) -> list[CompiledKernel]:
        """What has been compiled for this device, by function and in that order."""
        launched = [function for function in FUNCTIONS if self in function.device_caches]
        return [kernel for function in launched for kernel in function.device_caches[self][0].values()]

    # --- what Triton asks of a driver ---

    def get_current_device(self) -> AbsentDevice:
        return self

    def get_current_target(self) -> GPUTarget:
        return target(self.architecture)

    def get_current_stream(self, device: object) -> int:
        return 0

    def launcher_cls(self, source: object, metadata: object) -> Any:
        return self._launch

    def _launch(self, *arguments: object) -> None:
        self.launches += 1


@contextmanager
def installed(device: AbsentDevice) -> Iterator[None]:
    """Within the block CPU tensors are taken for tensors of ``device``."""
    before = driver._active
    with (
        patch.object(architectures, "of_device", cache(lambda _: ARCHITECTURES[device.architecture])),
        patch.object(backend, "INTERPRETED", True),  # only then are CPU tensors let through
        backends.use("triton"),
    ):
        driver.set_active(device)
        try:
            yield
        finally:
            driver.set_active(before)


@contextmanager
def present(architecture: str, kept: str | None = None) -> Iterator[AbsentDevice]:
    """Within the block CPU tensors are taken for tensors of such a device. Nothing is computed; outputs are arbitrary.

    ``kept``: a folder that keeps what is compiled; None: nothing is kept.
    """
    device = AbsentDevice(architecture)
    with (
        # A compilation of the past would hide one that fails today.
        tempfile.TemporaryDirectory() if kept is None else nullcontext(kept) as folder,
        knobs.cache.scope(),
        installed(device),
    ):
        knobs.cache.dir = folder
        yield device
