"""Runs a function on several ranks: real processes that talk over gloo on the loopback interface.

    results = world.run(2, train, "adamw", options)        # [train(0, ...), train(1, ...)]

Processes are forked from a server that has imported torch and this package already, so that a world takes less than a
second. Worlds share no port and no folder: the ranks of each meet in a temporary folder of its own.
"""

from __future__ import annotations

import faulthandler
import io
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import distributed

from tests.triton.ptx import check

GRACE = 3.0
"""Seconds that the other ranks have to end, or to report what they met, once one has failed."""

_SERVER = multiprocessing.get_context("forkserver")
# The server may be forked only as long as it has opened no parallel region: libgomp's threads would be missing in the
# fork, which waits for them forever. Importing these opens none.
_SERVER.set_forkserver_preload(
    [
        "torch",
        "torch.distributed.tensor",
        "torch.distributed.fsdp",
        "torch.distributed.checkpoint.state_dict",
        "torch.distributed.optim",
        "torch._dynamo",  # imported by the first DistributedDataParallel
        "regkernels.optim",
        "pytest",
    ]
)


class RankError(RuntimeError):
    """Ranks raised, died or hung. ``reports`` has the traceback of each of these, or what became of it."""

    def __init__(self, world_size: int, reports: dict[int, str]) -> None:
        self.reports = reports
        super().__init__("\n".join(f"rank {rank} of {world_size} {told}" for rank, told in sorted(reports.items())))


class _Rank(NamedTuple):
    process: ForkServerProcess
    answers: connection.Connection
    stacks: Path


def run(
    world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 60, grace: float = GRACE
) -> list[Any]:
    """What ``function(rank, *args)`` returned on each of ``world_size`` ranks.

    ``function`` is one of a module's, found by its name; what it is given and what it returns goes through `torch.save`.
    It runs with one thread, torch's seed at 0 and gloo as the default process group, whose collectives fail after half
    of ``timeout`` (seconds).

    Raises RankError if a rank raises, dies, or still runs after ``timeout``; once one has, the others have ``grace``
    seconds. No process is left behind, even if this one is killed.
    """
    packed = _pack((function, args))
    with tempfile.TemporaryDirectory(prefix="world-") as name, _ranks(world_size, Path(name), packed, timeout) as ranks:
        return _collect(ranks, timeout, grace)


def run_each(function: Callable[..., dict[str, Any]], sizes: Mapping[str, int]) -> dict[str, list[Any]]:
    """What each rank found for each of several cases, whose numbers of ranks are ``sizes``: one world for each number.

    ``function(rank, names)`` returns what it found by name.
    """
    found: dict[str, list[Any]] = {}
    for size in sorted(set(sizes.values())):
        names = [name for name, own in sizes.items() if own == size]
        answers = run(size, function, names)
        found.update({name: [answer[name] for answer in answers] for name in names})
    return found


@contextmanager
def _ranks(world_size: int, folder: Path, packed: bytes, timeout: float) -> Iterator[list[_Rank]]:
    ranks: list[_Rank] = []
    try:
        for rank in range(world_size):
            ours, theirs = _SERVER.Pipe(duplex=False)
            stacks = folder / f"stacks-{rank}"
            stacks.touch()  # a rank may die before it could
            arguments = (rank, world_size, folder / "meeting", stacks, timeout / 2, packed, theirs)
            process = _SERVER.Process(target=_live, args=arguments)
            process.start()
            theirs.close()
            ranks.append(_Rank(process, ours, stacks))
        yield ranks
    finally:
        for rank in ranks:
            rank.process.kill()
        for rank in ranks:
            rank.process.join()
            rank.process.close()
            rank.answers.close()


def _collect(ranks: list[_Rank], timeout: float, grace: float) -> list[Any]:
    deadline = time.monotonic() + timeout
    results: dict[int, Any] = {}
    reports: dict[int, str] = {}
    waiting = {rank.answers.fileno(): number for number, rank in enumerate(ranks)}
    while waiting and (ready := connection.wait(list(waiting), max(0.0, deadline - time.monotonic()))):
        for number in [waiting.pop(descriptor) for descriptor in ready]:
            try:
                succeeded, answer = _unpack(ranks[number].answers.recv_bytes())
            except (EOFError, OSError):  # the latter in the middle of its answer
                succeeded, answer = False, _death(ranks[number])
            (results if succeeded else reports)[number] = answer
            if not succeeded:
                deadline = min(deadline, time.monotonic() + grace)
    if not reports:
        reports = _hanging({number: ranks[number] for number in waiting.values()}, timeout)
    if reports:
        raise RankError(len(ranks), reports)
    return [results[number] for number in range(len(ranks))]


def _death(rank: _Rank) -> str:
    rank.process.join()
    code = rank.process.exitcode
    how = signal.Signals(-code).name if code is not None and code < 0 else f"exit status {code}"
    return f"died ({how}) before it returned\n{rank.stacks.read_text()}"


def _hanging(ranks: dict[int, _Rank], timeout: float) -> dict[int, str]:
    for rank in ranks.values():
        if rank.process.pid is not None:
            os.kill(rank.process.pid, signal.SIGUSR1)
    time.sleep(0.5 if ranks else 0.0)
    return {n: f"was still running after {timeout:g} s\n{rank.stacks.read_text()}" for n, rank in ranks.items()}


def _live(
    rank: int,
    world_size: int,
    meeting: Path,
    stacks: Path,
    patience: float,
    packed: bytes,
    answers: connection.Connection,
) -> None:
    """The life of a rank, in a process of its own."""
    _end_with_parent(meeting.parent)
    with stacks.open("w") as file:
        faulthandler.enable(file)
        faulthandler.register(signal.SIGUSR1, file)
        try:
            function, args = _unpack(packed)
            torch.set_num_threads(1)
            torch.manual_seed(0)
            # A host name that does not resolve, or no other interface, is no obstacle then.
            os.environ["GLOO_SOCKET_IFNAME"] = next(n for _, n in socket.if_nameindex() if n.startswith("lo"))
            distributed.init_process_group(
                "gloo",
                init_method=meeting.as_uri(),
                rank=rank,
                world_size=world_size,
                timeout=timedelta(seconds=patience),
            )
            with check.entered():
                answer = _pack((True, function(rank, *args)))
        except BaseException:
            answer = _pack((False, f"raised\n{traceback.format_exc()}"))
        answers.send_bytes(answer)
        answers.close()
        # What is left of groups and buckets is not worth waiting for, nor is what a failed collective left hanging.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _end_with_parent(folder: Path) -> None:
    """The process that asked for this rank is not the one that forked it, so its death would not be noticed; nor can it
    remove ``folder`` then."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _pack(what: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(what, stream)
    return stream.getvalue()


def _unpack(packed: bytes) -> Any:
    return torch.load(io.BytesIO(packed), weights_only=False)
