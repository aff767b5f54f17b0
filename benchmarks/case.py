"""Describes what is compared: a case puts one question to several contenders, on the same data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


def is_wrong(note: str) -> bool:
    """Tells whether a contender's note says that it computes something else on what is timed."""
    return note.startswith("wrong:")


@dataclass
class Contender:
    """``run`` is timed; ``prepare`` is called before each run, outside of the clock.

    ``bytes_moved``: where it has to move another number of bytes than the others, for the same question.
    ``keep``: what has to stay alive as long as it runs.
    """

    run: Callable[[], object]
    prepare: Callable[[], object] | None = None
    bytes_moved: int | None = None
    keep: Any = None


@dataclass
class Case:
    """Puts one question in one size. Contenders are made when its turn comes, as those of all cases do not fit into memory.

    Attributes:
        suite: the question, a key of `benchmarks.suites.SUITES`.
        name: what it is put to, as a person would say it.
        shapes: name of the list of shapes, a key of `benchmarks.shapes.LISTS`; empty where there is none.
        contenders: by peer (a key of `benchmarks.peers.PEERS`, or what stands before a comma in one); the first that is
            present, and computes the right thing, is the baseline of the ratios.
        bytes_moved: that must be read and written at least; 0 where the question is not about memory.
        memory: bytes that the contenders take up together, at a guess; a case that does not fit is skipped and said.
        stream: which of the machine's streams it is compared with: "update", "read" or "copy".
        clock: "device" (wall time on a CPU), "wall" or "host"; see `benchmarks.clocks`.
        x: where it stands on the axis of a picture: elements, tensors or threads.
    """

    suite: str
    name: str
    contenders: dict[str, Callable[[], Contender]]
    bytes_moved: int = 0
    memory: int = 0
    shapes: str = ""
    stream: str = "update"
    clock: str = "device"
    x: float | None = None
    notes: dict[str, str] = field(default_factory=dict)  # by contender: why it is not what it seems
    peaks: dict[str, int] = field(default_factory=dict)  # by contender, filled when it is made: bytes needed in between


@dataclass(frozen=True)
class Scope:
    """Says what a run is to cover. Empty tuples: everything."""

    device: str = "cpu"
    quick: bool = False
    shapes: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
