"""A Triton driver whose device is the machine: what the package launches on CPU tensors runs as compiled PTX.

Nothing of a device's maker is needed: the compiler is stopped at PTX.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from math import prod
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy
from torch import Tensor
from triton import knobs

import regkernels.backends.triton as backend
from regkernels import backends
from regkernels.backends.triton import launch, penalties
from tests.triton.driver import AbsentDevice, installed
from tests.triton.ptx import permissions
from tests.triton.ptx.machine import Tally, run, translated
from tests.triton.ptx.machine.execution import ENOUGH

_NUMBERS = {"fp64": numpy.float64, "fp32": numpy.float32, "i64": numpy.int64, "i32": numpy.int32}


class RunningDevice(AbsentDevice):
    """One instance is one device.

    Attributes:
        names: what each text that was run is called.
        tallies: what was seen of it.
        counts: how often each kernel was launched.
        rewritten: what is run in the place of a text, where that is another; for texts that are wrong on purpose.
        limit: the blocks of a program after which it is said not to end.
    """

    def __init__(self, architecture: str) -> None:
        super().__init__(architecture)
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 232448},
            # module, function, registers, spills, threads; of these a launch is given the function
            load_binary=lambda name, binary, shared, device: (None, binary.decode(), 0, 0, 1024),
        )
        self.names: dict[str, str] = {}
        self.tallies: dict[str, Tally] = {}
        self.counts: Counter[str] = Counter()
        self.rewritten: dict[str, str] = {}
        self.limits: defaultdict[str, int] = defaultdict(lambda: ENOUGH)

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
        name = source.fn.__name__
        arguments = dict(zip(source.fn.arg_names, values, strict=True))
        constants = {source.fn.arg_names[place]: value for (place,), value in source.constants.items()}
        given = [_number(type, arguments[name]) for name, type in source.signature.items() if type != "constexpr"]
        # Memory for what no kernel here asks for.
        given += [numpy.uint64(0)] * (len(translated(text).program.parameters) - len(given))
        tally = run(
            self.rewritten.get(text, text),
            (x, y, z),
            given,
            permissions.regions(name, arguments, constants, prod((x, y, z))),
            threads=32 * metadata.num_warps,
            shared=metadata.shared,
            limit=self.limits[text],
        )
        self.launches += 1
        self.counts[name] += 1
        self.names[text] = name
        if text in self.tallies:
            before = self.tallies[text]
            tally = Tally(before.blocks + tally.blocks, before.guards | tally.guards)
        self.tallies[text] = tally


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
def running(architecture: str) -> Iterator[RunningDevice]:
    """Within the block CPU tensors are taken for tensors of such a device, and kernels run on them."""
    device = RunningDevice(architecture)
    with ExitStack() as stack:
        stack.enter_context(knobs.runtime.scope())
        knobs.runtime.add_stages_inspection_hook = _stop_at_ptx
        stack.enter_context(patch.object(backends, "interprets", lambda: True))
        for module in (backend, launch, penalties):
            stack.enter_context(patch.object(module, "empty", permissions.unknown))
        stack.enter_context(installed(device))
        yield device
