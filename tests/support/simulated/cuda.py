"""Puts simulated devices in the place of torch.cuda, and what Triton launches into their queues."""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from triton.runtime import JITFunction
from triton.runtime.interpreter import InterpretedFunction

from regkernels import backends, memory, transforms
from regkernels.backends.triton import architectures, tables
from regkernels.optim.step import counts, states
from regkernels.table import upload
from tests.support.simulated.dispatch import Mode
from tests.support.simulated.simulation import Graph, Simulation
from tests.support.simulated.streams import Marker, Stream, Wait
from tests.support.simulated.tensors import OnDevice, unwrapped


def _api(simulation: Simulation) -> dict[str, Any]:
    """What the package, and torch beside it, ask of torch.cuda."""

    class CudaStream(Stream):
        def __init__(self, device: Any = None) -> None:
            super().__init__(_index(simulation, device))
            simulation.streams.append(self)

        def wait_stream(self, other: Stream) -> None:
            self.queue.append(Wait(other.mark()))

        def record_event(self) -> Event:
            event = Event()
            event.record(self)
            return event

        def wait_event(self, event: Event) -> None:
            self.queue.append(Wait(event.marker))

        def synchronize(self) -> None:
            simulation.drain(self)

    class Event:
        marker: Marker

        def record(self, stream: Stream | None = None) -> None:
            own = simulation.current[simulation.device] if stream is None else stream
            self.marker = Marker(own)
            simulation.give(self.marker, own)

        def synchronize(self) -> None:
            simulation.until(lambda: self.marker.done, self.marker.stream)

    for default in simulation.default:
        default.__class__ = CudaStream

    @contextmanager
    def stream(chosen: Stream) -> Iterator[None]:
        before, simulation.current[chosen.device] = simulation.current[chosen.device], chosen
        try:
            with device(chosen.device):
                yield
        finally:
            simulation.current[chosen.device] = before

    @contextmanager
    def device(chosen: Any) -> Iterator[None]:
        before, simulation.device = simulation.device, _index(simulation, chosen)
        try:
            yield
        finally:
            simulation.device = before

    @contextmanager
    def graph(recorded: Graph) -> Iterator[None]:
        simulation.synchronize()
        side = CudaStream(simulation.device)
        with stream(side):
            simulation.recording = recorded
            try:
                yield
            finally:
                simulation.recording = None

    class CUDAGraph(Graph):
        def replay(self) -> None:
            simulation.replay(self)

    return {
        "_lazy_init": lambda: None,
        "is_initialized": lambda: True,
        "is_available": lambda: True,
        "is_current_stream_capturing": lambda: simulation.recording is not None,
        "device_count": lambda: simulation.count,
        "current_device": lambda: simulation.device,
        "current_stream": lambda device=None: simulation.current[_index(simulation, device)],
        "synchronize": lambda device=None: simulation.synchronize(),
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": lambda device=None: SimpleNamespace(major=9, minor=0),
        "device": device,
        "stream": stream,
        "graph": graph,
        "Stream": CudaStream,
        "Event": Event,
        "CUDAGraph": CUDAGraph,
    }


def _index(simulation: Simulation, device: Any) -> int:
    if isinstance(device, int):
        return device
    index = None if device is None else torch.device(device).index
    return simulation.device if index is None else index


def _launch(simulation: Simulation, run: Any) -> Any:
    """Puts a launch into the current stream of the current device; without an interpreter nothing is computed."""

    def launch(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **constants: Any) -> None:
        placed = {leaf.block.device for leaf in arguments if isinstance(leaf, OnDevice)}
        assert placed <= {simulation.device}, (
            f"a kernel is launched on cuda:{simulation.device} for tensors of {placed}"
        )
        assert not any(isinstance(leaf, Tensor) and not isinstance(leaf, OnDevice) for leaf in arguments)
        own = unwrapped(arguments)
        interpreted = isinstance(kernel, InterpretedFunction)
        operation = (lambda: run(kernel, *own, grid=grid, warmup=warmup, **constants)) if interpreted else lambda: own
        simulation.submit(operation, simulation.device)

    return launch


@contextmanager
def devices(count: int = 1, *, late: bool = False, others_first: bool = False) -> Iterator[Simulation]:
    """Within the block there are ``count`` devices, and their tensors; see `Simulation`."""
    simulation = Simulation(count, late=late, others_first=others_first)

    def own_storage(run: Tensor) -> Tensor:
        if not isinstance(run, OnDevice):
            return of_cpu(run)
        return OnDevice(of_cpu(run.memory), run.block, simulation)

    of_cpu = memory.own_storage
    real = {kind: kind.run for kind in (JITFunction, InterpretedFunction)}
    architectures.of_device.cache_clear()
    with ExitStack() as stack:
        for name, value in _api(simulation).items():
            stack.enter_context(patch.object(torch.cuda, name, value))
        for kind, run in real.items():
            stack.enter_context(patch.object(kind, "run", _launch(simulation, run)))
        for module in (memory, counts, states):
            stack.enter_context(patch.object(module, "own_storage", own_storage))
            # A tensor of a device is to be taken for one of torch's own class.
            stack.enter_context(patch.object(module, "type", _class_of, create=True))
        for module, name, empty in _kept():
            stack.enter_context(patch.object(module, name, empty))
        stack.enter_context(patch.object(backends, "_interpreted", lambda: False))
        stack.enter_context(patch.object(transforms, "_modes", lambda: 0))
        stack.enter_context(_guards())
        stack.enter_context(_lifting_on_the_cpu())
        stack.enter_context(Mode(simulation))
        try:
            yield simulation
        finally:
            architectures.of_device.cache_clear()


def _kept() -> list[tuple[Any, str, Any]]:
    """What the package keeps for all devices of a process, empty: those of another simulation were others."""
    nothing = torch.empty(0, dtype=torch.uint8)
    return [
        (upload, "_stock", nothing),
        (upload, "_largest", 0),
        (upload, "_kept", {}),
        (tables, "_recent", OrderedDict()),
    ]


def _class_of(tensor: Any) -> type:
    return Tensor if isinstance(tensor, OnDevice) else type(tensor)


@contextmanager
def _guards() -> Iterator[None]:
    """Lets torch make a device the current one that it was not built for: what does so for tensors without values does for these."""
    torch._C._ensureCUDADeviceGuardSet()  # for one that was
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * (_META + 1)).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    before = guards[_CUDA]
    guards[_CUDA] = before or guards[_META]
    try:
        yield
    finally:
        guards[_CUDA] = before


_CUDA, _META = 1, 14
"""Of c10::DeviceType."""


@contextmanager
def _lifting_on_the_cpu() -> Iterator[None]:
    """Lets ``torch.tensor(..., device=...)`` make its tensor on the CPU and copy it, where that is seen."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        yield
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
