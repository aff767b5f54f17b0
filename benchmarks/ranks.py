"""Keeps processes, each a rank of one group, that do together what they are told."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing


class Ranks:
    """Calls ``make(rank)`` in each process; it returns what the process can be told to do: functions by name."""

    def __init__(self, count: int, threads: int, make: Callable[..., dict[str, Callable[[], object]]], *args: Any):
        context = multiprocessing.get_context("spawn")
        meeting = Path(tempfile.mkdtemp(prefix="ranks-")) / "meeting"
        self._pipes: list[Connection] = []
        processes = []
        for rank in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_live, args=(rank, count, threads, meeting, theirs, make, args), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            processes.append(process)
        self._answers(self._pipes)
        weakref.finalize(self, _end, self._pipes, processes)

    def do(self, what: str, ranks: int | None = None) -> None:
        """Tells the first ``ranks`` of them, or all; returns when the last one has done it."""
        pipes = self._pipes[:ranks]
        for pipe in pipes:
            pipe.send(what)
        self._answers(pipes)

    def _answers(self, pipes: list[Connection]) -> None:
        missing = list(pipes)
        while missing:
            for pipe in wait(missing):
                missing.remove(pipe)  # type: ignore[arg-type]
                error = pipe.recv()  # type: ignore[union-attr]
                if error:
                    raise RuntimeError(error)


def _live(
    rank: int, count: int, threads: int, meeting: Path, pipe: Connection, make: Callable[..., Any], args: Any
) -> None:
    torch.set_num_threads(threads)
    distributed.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=count)
    try:
        tasks = make(rank, *args)
        pipe.send("")
        while what := pipe.recv():
            tasks[what]()
            pipe.send("")
        distributed.destroy_process_group()
    except EOFError:
        pass
    except Exception as error:
        pipe.send(f"rank {rank}: {type(error).__name__}: {error}")


def _end(pipes: list[Connection], processes: list[Any]) -> None:
    for pipe in pipes:
        pipe.close()
    for process in processes:
        process.join(10)
        process.kill()
