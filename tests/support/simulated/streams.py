"""Streams and events of simulated devices: queues of operations, and the order in which they may be done."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Operation = Callable[[], object]


@dataclass
class Marker:
    """Stands in a queue where an event was recorded."""

    stream: Stream
    done: bool = False

    def __call__(self) -> None:
        self.done = True


@dataclass
class Wait:
    """Holds up the queue that it stands in until ``marker`` is done."""

    marker: Marker

    def __call__(self) -> None:
        assert self.marker.done


class Stream:
    """A queue of operations of one device, which are done one after the other."""

    numbers = iter(range(1, 1 << 30))

    def __init__(self, device: int) -> None:
        self.device, self.cuda_stream = device, next(self.numbers)
        self.queue: deque[Operation] = deque()

    @property
    def runs(self) -> bool:
        """Whether its next operation may be done."""
        return bool(self.queue) and not (isinstance(self.queue[0], Wait) and not self.queue[0].marker.done)

    def mark(self) -> Marker:
        marker = Marker(self)
        self.queue.append(marker)
        return marker


def needed(wanted: Stream) -> list[Stream]:
    """A stream, and those that it has to wait for, one after the other."""
    found = [wanted]
    for stream in found:
        waits = [op.marker.stream for op in stream.queue if isinstance(op, Wait) and not op.marker.done]
        found += [other for other in dict.fromkeys(waits) if other not in found]
    return found


def run_until(done: Callable[[], bool], wanted: Stream, streams: Iterable[Stream], *, others_first: bool) -> None:
    """Does operations until ``done``, which takes some of ``wanted``.

    ``others_first``: everything else that may be done comes before; if not, nothing is done that need not be.
    """
    every = list(streams)
    while not done():
        own = needed(wanted)
        others = [stream for stream in every if stream not in own]
        runnable: list[Any] = [stream for stream in ([*others, *own] if others_first else own) if stream.runs]
        assert runnable, "the streams wait for each other"
        runnable[0].queue.popleft()()
