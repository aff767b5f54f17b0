"""What simulated devices have in common: who is current, what is recorded, what is page-locked, and when something is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from tests.support.simulated.streams import Operation, Stream, run_until


class Waited(AssertionError):
    """The host would have waited for a device."""


class Graph:
    """Operations that were recorded, to be done again at every replay."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []


class Simulation:
    """``late``: operations stay in their queues until somebody waits; if not, they are done at once. See `run_until` for
    ``others_first``.

    Attributes:
        waits: what the host has waited for.
        operations: how many there were.
    """

    def __init__(self, count: int, *, late: bool, others_first: bool = False) -> None:
        self.count, self.late, self._others_first = count, late, others_first
        self.default = [Stream(index) for index in range(count)]
        self.streams = list(self.default)
        self.current = list(self.default)
        self.device = 0
        self.recording: Graph | None = None
        self.waits: list[str] = []
        self.operations = 0
        self._may_wait = True
        self._pinned: dict[int, Any] = {}

    # --- operations ---

    def submit(self, operation: Operation, device: int) -> None:
        """Gives an operation to the current stream of a device."""
        self.operations += 1
        if self.recording is not None:
            assert device == self.device, f"cuda:{device} works while a graph of cuda:{self.device} is captured"
            self.recording.operations.append(operation)
            return
        self.give(operation, self.current[device])

    def give(self, operation: Operation, stream: Stream) -> None:
        stream.queue.append(operation)
        if not self.late:
            self.drain(stream)

    def drain(self, stream: Stream) -> None:
        run_until(lambda: not stream.queue, stream, self.streams, others_first=self._others_first)

    def synchronize(self) -> None:
        """Does all that is left to do: of the latest stream first, or last."""
        for stream in self.streams[::-1] if self._others_first else self.streams:
            run_until(lambda own=stream: not own.queue, stream, self.streams, others_first=False)  # type: ignore[misc]

    def until(self, done: Callable[[], bool], stream: Stream) -> None:
        run_until(done, stream, self.streams, others_first=self._others_first)

    def replay(self, graph: Graph) -> None:
        for operation in graph.operations:
            self.submit(operation, self.device)

    # --- waiting ---

    def wait(self, what: str, device: int) -> None:
        """Lets the host wait for the current stream of a device."""
        self.waits.append(what)
        if self.recording is not None:
            raise Waited(f"{what} while a graph is captured")
        if not self._may_wait:
            raise Waited(what)
        self.drain(self.current[device])

    @contextmanager
    def no_waiting(self) -> Iterator[None]:
        """Within the block it is an error that the host waits."""
        self._may_wait = False
        try:
            yield
        finally:
            self._may_wait = True

    # --- page-locked memory ---

    def pin(self, tensor: Tensor) -> Tensor:
        """Takes the memory of a tensor for page-locked. It is never freed, so that no other memory has its address."""
        storage = tensor.untyped_storage()
        self._pinned[storage.data_ptr()] = storage
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._pinned
