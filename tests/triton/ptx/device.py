"""A Triton driver whose device is the machine: what the package launches on CPU tensors runs as compiled PTX.

Nothing of a device's maker is needed: the compiler is stopped at PTX.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from math import prod
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar
from unittest.mock import patch

import numpy
from torch import Tensor
from triton import knobs

import regkernels.backends.triton as backend
from regkernels import backends
from regkernels.backends.triton import by_groups, launch, penalties, rows
from tests.triton.driver import AbsentDevice, installed
from tests.triton.ptx import permissions
from tests.triton.ptx.machine import Code, Region, Tally, run, translated
from tests.triton.ptx.machine.execution import ENOUGH

Device = TypeVar("Device", bound="RunningDevice")

_NUMBERS = {"fp64": numpy.float64, "fp32": numpy.float32, "i64": numpy.int64, "i32": numpy.int32}


class Launch(NamedTuple):
    name: str
    text: str
    grid: tuple[int, int, int]
    arguments: list[numpy.generic]
    regions: list[Region]
    threads: int
    shared: int

    def of(self, code: Code, limit: int = ENOUGH) -> Tally:
        """Runs the text, or what is tried in its place."""
        return run(code, self.grid, self.arguments, self.regions, threads=self.threads, shared=self.shared, limit=limit)


class RunningDevice(AbsentDevice):
    """One instance is one device.

    Attributes:
        tallies: what was seen of each text that was run.
        counts: how often each function was launched.
    """

    def __init__(self, architecture: str) -> None:
        super().__init__(architecture)
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 232448},
            # module, function, registers, spills, threads; of these a launch is given the function
            load_binary=lambda name, binary, shared, device: (None, binary.decode(), 0, 0, 1024),
        )
        self.tallies: dict[str, Tally] = {}
        self.counts: Counter[str] = Counter()

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        return partial(self._run, source, metadata)

    def _run(
        self,
        source: Any,
        metadata: Any,
        x: int,
        y: int,
        z: int,
        stream: int,
        text: str,
        packed: object,
        launch_metadata: object,
        enter: object,
        leave: object,
        *values: Any,
    ) -> None:
        name, code = source.fn.__name__, translated(text)
        arguments = dict(zip(source.fn.arg_names, values, strict=True))
        constants = {source.fn.arg_names[place]: value for (place,), value in source.constants.items()}
        given = [_number(type, arguments[name]) for name, type in source.signature.items() if type != "constexpr"]
        # Memory for what no kernel here asks for.
        given += [numpy.uint64(0)] * (len(code.program.parameters) - len(given))
        regions = permissions.regions(name, arguments, constants, prod((x, y, z)))
        tally = self.run(Launch(name, text, (x, y, z), given, regions, 32 * metadata.num_warps, metadata.shared))
        self.launches += 1
        self.counts[name] += 1
        if text in self.tallies:
            before = self.tallies[text]
            tally = Tally(before.blocks + tally.blocks, before.guards | tally.guards)
        self.tallies[text] = tally

    def run(self, launch: Launch) -> Tally:
        return launch.of(translated(launch.text))


def _number(type: str, value: Any) -> numpy.generic:
    if isinstance(value, Tensor):
        return numpy.uint64(value.data_ptr())
    return _NUMBERS[type](value)


def _stop_at_ptx(*arguments: Any) -> Any:
    """Takes what PTX is compiled to for PTX itself. Triton calls it without arguments to tell caches apart."""
    if not arguments:
        return "stopped at ptx", "stopped at ptx"
    _, stages, *_ = arguments
    stages["cubin"] = lambda text, metadata: text.encode()
    return None


@contextmanager
def running(architecture: str, kind: type[Device] = RunningDevice) -> Iterator[Device]:  # type: ignore[assignment]
    """Within the block CPU tensors are taken for tensors of such a device, and kernels run on them."""
    device = kind(architecture)
    with ExitStack() as stack:
        stack.enter_context(knobs.runtime.scope())
        knobs.runtime.add_stages_inspection_hook = _stop_at_ptx
        stack.enter_context(patch.object(backends, "interprets", lambda: True))
        for module in (backend, by_groups, launch, penalties, rows):
            stack.enter_context(patch.object(module, "empty", permissions.unknown))
        stack.enter_context(installed(device))
        yield device
