"""Ranks that fail, hang or die are reported, soon, and nothing is left of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

from regkernels import optim
from tests.distributed import world


def _summed(rank: int, tensor: Tensor, options: dict[str, Any]) -> dict[str, Any]:
    mine = tensor * 10**rank
    distributed.all_reduce(mine)
    return {"sum": mine, "rank": rank, "threads": torch.get_num_threads(), "pid": os.getpid(), **options}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_each_rank_returns_what_it_computed(size: int) -> None:
    results = world.run(size, _summed, torch.arange(3), {"name": "value"})
    for rank, result in enumerate(results):
        assert torch.equal(result["sum"], torch.arange(3) * int("1" * size))
        assert (result["rank"], result["threads"], result["name"]) == (rank, 1, "value")
    assert len({result["pid"] for result in results} | {os.getpid()}) == size + 1


def _large(rank: int) -> Tensor:
    return torch.full((2**22,), float(rank))


def test_results_larger_than_a_pipe() -> None:
    for rank, result in enumerate(world.run(2, _large)):
        assert torch.equal(result, torch.full((2**22,), float(rank)))


def _threaded(rank: int) -> Tensor:
    torch.set_num_threads(2)
    weight = torch.nn.Parameter(torch.ones(2**18))
    weight.grad = torch.ones(2**18)
    optim.SGD([weight], lr=0.5).step()
    return weight.detach() @ torch.ones(2**18)


def test_ranks_may_have_threads() -> None:
    """They would wait forever for those of the process that they are forked from, had it ever had any."""
    assert world.run(2, _threaded, timeout=20) == [2**17, 2**17]


def _raising(rank: int) -> None:
    if rank == 1:
        raise ValueError("as it was asked to")
    distributed.barrier()


def test_an_exception_is_raised_with_its_traceback() -> None:
    expected = r"(?s)rank 1 of 3 raised.*in _raising.*ValueError: as it was asked to"
    with pytest.raises(world.RankError, match=expected):
        world.run(3, _raising, timeout=100_000, grace=0.5)


def _alive(rank: int, folder: Path) -> None:
    (folder / str(rank)).write_text(str(os.getpid()))
    distributed.barrier()
    while rank > 0:
        time.sleep(0.01)


def test_ranks_that_hang_are_named_and_killed(tmp_path: Path) -> None:
    expected = r"(?s)rank 1 of 3 was still running after 4 s.*in _alive.*rank 2"
    with pytest.raises(world.RankError, match=expected) as error:
        world.run(3, _alive, tmp_path, timeout=4)
    assert set(error.value.reports) == {1, 2}
    assert not any(_runs(path) for path in tmp_path.iterdir())


def _dying(rank: int) -> None:
    if rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.barrier()


def test_a_rank_that_dies_is_named_and_the_others_say_what_they_met() -> None:
    with pytest.raises(world.RankError, match=r"rank 0 of 2 died \(SIGKILL\) before it returned") as error:
        world.run(2, _dying, grace=30)
    assert "in _dying" in error.value.reports[1]


def _waiting(rank: int, folder: Path) -> None:
    (folder / str(rank)).write_text(str(os.getpid()))
    distributed.barrier()
    (folder / "all").touch()
    time.sleep(600)


ASK = """
from pathlib import Path
from tests.distributed import test_world
test_world.world.run(2, test_world._waiting, Path({folder!r}), timeout=600)
"""


def test_ranks_end_when_the_process_that_wants_them_is_killed(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", ASK.format(folder=str(tmp_path))], cwd=root) as asking:
        try:
            _wait((tmp_path / "all").exists)
            assert _runs(tmp_path / "0") and _runs(tmp_path / "1")
        finally:
            asking.kill()
    _wait(lambda: not _runs(tmp_path / "0") and not _runs(tmp_path / "1"))


def _runs(written: Path) -> bool:
    """A process that ended may still be in the table of processes."""
    try:
        return Path(f"/proc/{written.read_text()}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.05)
