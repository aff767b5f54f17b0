"""examples/gpt.py under torchrun: the run of one process, whatever the number of ranks and however they hold the weights."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from regkernels.distributed.shards import held
from tests.distributed import world
from tests.support.gpt_runs import PROGRAM, load, start, write_text

ROW = re.compile(r" +\d+ +\d+\.\d{3} ")
STEPS, LOG_EVERY = 96, 8
# 31 positions and weights of 33 rows: parts of unequal size.
TINY = (
    "--layers=1 --width=33 --heads=3 --context=31 --batch-size=8 --lr=3e-3 --warmup=4 --l1=3e-4 --device=cpu "
    f"--dtype=float32 --steps={STEPS} --log-every={LOG_EVERY} --save-every=8 --tensorboard"
).split()
TOLERANCE = 1e-5
"""Of losses in nats, and of weights whose largest is about 1: float32 sums in another order, carried on by every step."""


class Relay(NamedTuple):
    """A training that went on elsewhere twice: what each leg printed, and the folder of its checkpoint and log."""

    one_process: str
    fsdp: str
    ddp: str
    folder: Path


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def alone(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The same training in one process, from beginning to end."""
    folder = tmp_path_factory.mktemp("alone")
    return finish(start(text, folder, *TINY)), folder


@pytest.fixture(scope="module")
def relay(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Relay:
    folder, again = tmp_path_factory.mktemp("relay"), ["--resume", "--tensorboard"]
    first = stop(start(text, folder, *TINY))
    second = stop(start(text, folder, *again, "--fsdp", ranks=2))
    return Relay(first, second, finish(start(text, folder, *again, ranks=2)), folder)


def finish(process: subprocess.Popen[str]) -> str:
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    return printed


def stop(process: subprocess.Popen[str]) -> str:
    """Asks the program, or torchrun, to end after the first row; returns all that is printed."""
    lines: list[str] = []
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            lines.append(line)
            if ROW.match(line) and sum(map(bool, map(ROW.match, lines))) == 1:
                process.send_signal(signal.SIGTERM)  # a second one would not wait
    assert process.returncode != 0
    return "".join(lines)


def stopped(printed: str) -> int:
    (step,) = re.findall(r"^Stopped after step (\d+),", printed, re.MULTILINE)
    return int(step)


def curves(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows, in full float32: values by name and step."""
    accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder)).Reload()
    names = ("loss", "validation", "grad norm", "l1_norm/mlps", "squared_norm/matrices", "squared_norm/norms")
    return {name: {event.step: event.value for event in events.Scalars(name)} for name in names}


def test_same_training_as_in_one_process(relay: Relay, alone: tuple[str, Path]) -> None:
    ours, theirs = curves(relay.folder), curves(alone[1])
    # The loss is a mean since the last row, or since the process began.
    begun = {step - step % LOG_EVERY + LOG_EVERY for step in (stopped(relay.one_process), stopped(relay.fsdp))}
    for what in theirs:
        assert theirs[what].keys() == set(range(LOG_EVERY, STEPS + 1, LOG_EVERY)) <= ours[what].keys()
        for step in theirs[what].keys() - (begun if what == "loss" else set()):
            assert ours[what][step] == pytest.approx(theirs[what][step], rel=TOLERANCE, abs=TOLERANCE), (what, step)
    ends = load(relay.folder), load(alone[1])
    assert ends[0]["step"] == STEPS and ends[0]["settings"] == ends[1]["settings"]
    assert torch.equal(ends[0]["order"], ends[1]["order"])
    torch.testing.assert_close(ends[0]["model"], ends[1]["model"], rtol=TOLERANCE, atol=TOLERANCE)
    states = [end["optimizer"]["state"] for end in ends]
    assert states[0].keys() == states[1].keys()
    for index, state in states[0].items():
        torch.testing.assert_close(state, states[1][index], rtol=TOLERANCE, atol=TOLERANCE)


def test_rank_0_alone_prints_and_nothing_warns(relay: Relay, alone: tuple[str, Path]) -> None:
    expected, lines = alone[0].splitlines(), relay.ddp.splitlines()
    assert " weights in float32 on 2 x cpu (FSDP), " in relay.fsdp
    assert " weights in float32 on 2 x cpu (DDP), " in relay.ddp
    rows = {
        name: [line for line in printed if ROW.match(line)] for name, printed in (("ddp", lines), ("all", expected))
    }
    assert len(rows["ddp"]) == len({line.split()[0] for line in rows["ddp"]})
    assert lines[0] == expected[0] and lines[2:5] == expected[2:5]
    assert len(lines) - len(rows["ddp"]) == len(expected) - len(rows["all"])
    assert relay.fsdp.splitlines()[2:5] == expected[2:5]


def test_whoever_stops_torchrun_can_go_on(relay: Relay) -> None:
    first, second = stopped(relay.one_process), stopped(relay.fsdp)
    assert LOG_EVERY <= first < second < STEPS
    for printed, before in ((relay.fsdp, first), (relay.ddp, second)):
        assert int(printed.split("min left\n")[1].split()[0]) == before - before % LOG_EVERY + LOG_EVERY


def pieces(rank: int) -> list[tuple[str, bool]]:
    """What a checkpoint makes of a bfloat16 run with FSDP: for each state, its type and whether it comes back as it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PROGRAM.parent)
        gpt, gpt_options, gpt_ranks = map(importlib.import_module, ("gpt", "gpt_options", "gpt_ranks"))
    args = gpt_options.make_parser().parse_args([*TINY, "--dtype=bfloat16"])
    ranks = gpt_ranks.Ranks(torch.device("cpu"), rank, 2, fsdp=True)
    model = gpt.make_model(args)
    network = ranks.spread(model)
    optimizer, other = (gpt.make_optimizer(model, args) for _ in range(2))
    for _ in range(2):
        model.loss(torch.randint(256, (4, 32), dtype=torch.uint8), network).backward()
        optimizer.step()
    packed = gpt_ranks.whole(optimizer.state_dict())
    other.load_state_dict(gpt_ranks.spread_state(packed, other))
    found = []
    for index, (param, state) in enumerate(optimizer.state.items()):
        for name, value in state.items():
            back, one_piece = other.state[param][name], packed["state"][index][name]
            assert one_piece.shape == value.shape and type(one_piece) is torch.Tensor
            found.append((str(value.dtype), torch.equal(held(value), held(back)) and bool(one_piece.any())))
    return found


def test_states_in_one_piece_and_back() -> None:
    for found in world.run(2, pieces):
        assert {dtype for dtype, _ in found} == {"torch.float32", "torch.int16"}
        assert all(same for _, same in found)


def test_an_error_of_one_rank_ends_all(text: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "checkpoint.tmp").mkdir(parents=True)  # rank 0 cannot write, the other has nothing to write
    with start(text, tmp_path / "out", *TINY, "--fsdp", ranks=2) as process:
        printed, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "IsADirectoryError" in printed and "What it writes" not in printed


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(PROGRAM.parent)
    names = ("gpt", "gpt_model", "gpt_options", "gpt_ranks", "gpt_report")
    yield {name: importlib.import_module(name) for name in names}
    for name in names:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("environment", "arguments", "message"),
    [
        ({}, "--fsdp", "--fsdp needs torchrun: torchrun --nproc-per-node 2"),
        ({"WORLD_SIZE": "3"}, "--batch-size 16", "--batch-size 16 cannot be divided among 3 processes"),
        ({"WORLD_SIZE": "2"}, "--device cuda:1", "--device cuda:1 is one GPU for 2 processes"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "64"}, "--device cuda", "no GPU for process 64 of this machine"),
    ],
)
def test_bad_arguments(
    environment: dict[str, str],
    arguments: str,
    message: str,
    modules: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if environment:
        environment = {"TORCHELASTIC_RUN_ID": "test", "RANK": "0", "LOCAL_RANK": "0"} | environment
    for name, value in environment.items():
        monkeypatch.setitem(os.environ, name, value)
    with pytest.raises(SystemExit, match=message.replace("(", r"\(")):
        modules["gpt"].main([f"--out={tmp_path / 'new'}", *arguments.split()])
    assert not (tmp_path / "new").exists() and not torch.distributed.is_initialized()


def test_validation_counts_every_window_once(modules: Any) -> None:
    model = modules["gpt_model"].GPT(layers=1, width=16, heads=2, context=6, dropout=0.0)
    windows = torch.randint(256, (9, 7), dtype=torch.uint8)  # batches of 4, 4 and 1, of which two ranks have nothing
    ranks = [modules["gpt_ranks"].Ranks(torch.device("cpu"), rank, 3) for rank in range(3)]
    sums: list[torch.Tensor] = []
    for rank in ranks:
        model.validate(windows, 4, rank.part, lambda own: sums.append(own) or own)
    assert float(sum(sums)) / len(windows) == pytest.approx(model.validate(windows, 4), rel=1e-6)
