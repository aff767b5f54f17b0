"""A run that is killed at any moment and started again ends with the same bits as one that is not."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.optim.checkpoint.cases import PAIRS, assert_identical, snapshot
from tests.optim.checkpoint.runs import EVERY, STEPS, run

# Each process starts as a copy of one that has imported these and done nothing else; torch imports the second when an
# optimizer is made, which takes seconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.optim.checkpoint.runs", "torch._dynamo", "pytest"])


def _start(folder: Path, name: str, precision: str) -> tuple:
    ours, its = PROCESSES.Pipe()
    process = PROCESSES.Process(target=run, args=(folder, name, precision, its), daemon=True)
    process.start()
    its.close()
    return process, ours


@pytest.mark.parametrize(("name", "precision"), PAIRS)
def test_killed_at_random_moments(name: str, precision: str, tmp_path: Path) -> None:
    chance = random.Random(f"{name} {precision}")
    (tmp_path / "whole").mkdir()
    whole = snapshot(run(tmp_path / "whole", name, precision))
    folder = tmp_path / "killed"
    folder.mkdir()
    starts, reached = [], 0
    for earliest in (EVERY + 1, 1, 1):
        process, connection = _start(folder, name, precision)
        target = chance.randint(earliest, STEPS)
        starts.append(connection.recv())
        assert starts[-1] % EVERY == 0 and starts[-1] >= reached - EVERY, "from the last complete checkpoint"
        reached = starts[-1]
        while reached < min(max(target, starts[-1] + 1), STEPS):
            reached = connection.recv()
        time.sleep(chance.uniform(0, 0.004))  # anywhere within the next steps, or within writing a checkpoint
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    process, connection = _start(folder, name, precision)
    starts.append(connection.recv())
    assert starts[0] == 0 and starts[1] >= EVERY and sorted(starts) == starts
    connection.send("finish")
    process.join()
    assert process.exitcode == 0
    assert_identical(snapshot(torch.load(folder / "result.pt", weights_only=True)), whole)
