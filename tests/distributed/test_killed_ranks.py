"""A rank is killed in the middle of a run: the others fail, soon and with a message, and the run goes on from its last
checkpoint to the bits it would have had."""

from __future__ import annotations

import functools
import os
import re
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from regkernels import optim
from tests.distributed import world

STEPS, EVERY, FATAL = 7, 2, 4
"""A checkpoint after every second step; what happens in the fifth is lost."""

Trained = tuple[list[Tensor], dict[str, Any]]


SETTINGS: dict[str, tuple[torch.dtype, bool, dict[str, Any]]] = {
    "DDP": (torch.float32, False, {"max_grad_norm": 0.5}),
    "DDP, stochastic rounding": (torch.bfloat16, False, {"param_rounding": "stochastic", "seed": 3}),
    "ZeRO": (torch.float32, True, {"max_grad_norm": 0.5}),
}


def _optimizer(params: list[nn.Parameter], zero: bool, options: dict[str, Any]) -> Any:
    options = {"lr": 0.02, "l1": 0.01, "stats": True, **options}
    if not zero:
        return optim.AdamW(params, **options)
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return ZeroRedundancyOptimizer(
        params, functools.partial(optim.AdamW, process_group=distributed.group.WORLD), **options
    )


def _train(rank: int, folder: Path, setting: str, fatal: str = "") -> Trained:
    """From the last checkpoint in ``folder``, if there is one. ``fatal``: where the last rank dies."""
    torch.manual_seed(0)
    dtype, zero, options = SETTINGS[setting]
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = _optimizer(list(model.parameters()), zero, options)
    begin, file = 0, folder / "last.pt"
    if file.exists():
        saved = torch.load(file)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        begin = saved["steps"]

    def meet(where: str, step: int) -> None:
        if (rank, where, step) == (1, fatal, FATAL):
            os.kill(os.getpid(), signal.SIGKILL)

    for step in range(begin, STEPS):
        x = torch.sin(torch.arange(20.0).view(4, 5) * (rank + 1) + step).to(dtype)
        optimizer.zero_grad()
        loss = (wrapped(x) - x[:, :3]).square().mean()
        meet("backward", step)
        loss.backward()
        meet("step", step)
        before = [param.detach().clone() for param in model.parameters()]
        try:
            optimizer.step()
        except RuntimeError:
            assert all(map(torch.equal, before, model.parameters()))
            raise
        if step % EVERY == EVERY - 1:
            _save(file, {"steps": step + 1, "model": model.state_dict()}, optimizer)
    return [param.detach() for param in model.parameters()], _states(optimizer)["state"]


def _states(optimizer: Any) -> Any:
    if hasattr(optimizer, "consolidate_state_dict"):
        optimizer.consolidate_state_dict(to=0)
    return optimizer.state_dict() if distributed.get_rank() == 0 else {"state": {}}


def _save(file: Path, saved: dict[str, Any], optimizer: Any) -> None:
    states = _states(optimizer)
    if distributed.get_rank() == 0:
        torch.save({**saved, "optimizer": states}, file.with_suffix(".new"))
        file.with_suffix(".new").replace(file)  # whole, or not at all


KILLED = [
    ("DDP", "backward", "by peer"),
    ("DDP, stochastic rounding", "backward", "by peer"),
    ("ZeRO", "backward", "by peer"),
    ("ZeRO", "step", "the sums of a step .* could not be added over 2 ranks: a rank may have ended"),
]


def _train_each(rank: int, folder: Path) -> list[Trained]:
    return [_train(rank, folder / setting, setting) for setting in SETTINGS]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Trained]]:
    """Of runs that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole")
    for setting in SETTINGS:
        (folder / setting).mkdir()
    return dict(zip(SETTINGS, zip(*world.run(2, _train_each, folder), strict=True), strict=True))


@pytest.mark.parametrize(("setting", "where", "told"), KILLED)
def test_a_killed_run_goes_on_to_the_same_bits(
    setting: str, where: str, told: str, expected: dict[str, list[Trained]], tmp_path: Path
) -> None:
    with pytest.raises(world.RankError) as error:
        world.run(2, _train, tmp_path, setting, where, grace=30)
    reports = error.value.reports
    assert "SIGKILL" in reports[1]
    assert re.search(f"RuntimeError: .*{told}", reports[0])
    assert torch.load(tmp_path / "last.pt")["steps"] == FATAL // EVERY * EVERY
    torch.testing.assert_close(world.run(2, _train, tmp_path, setting), list(expected[setting]), rtol=0, atol=0)


def _abandoned(rank: int, folder: Path) -> list[str]:
    """What each call that waits for the other rank, which has stopped, says."""

    def make(**options: Any) -> tuple[nn.Parameter, optim.Optimizer]:
        weight = nn.Parameter(torch.ones(3))
        weight.grad = torch.ones(3)
        group = distributed.new_group(timeout=timedelta(seconds=3))
        return weight, optim.SGD([weight], lr=0.1, process_group=group, **options)

    first, clipping, counting = make(max_grad_norm=1.0), make(max_grad_norm=1.0), make(stats=True)
    for _, optimizer in (clipping, counting):
        optimizer.step()
    if rank == 1:
        while not (folder / "done").exists():
            time.sleep(0.01)
        return []
    told = []
    for weight, optimizer in (first, clipping):
        before = weight.detach().clone()
        with pytest.raises(RuntimeError) as error:
            optimizer.step()
        told.append(str(error.value))
        assert torch.equal(weight, before)
    counting[1].step()
    with pytest.raises(RuntimeError) as error:
        _ = counting[1].stats
    (folder / "done").touch()
    return [*told, str(error.value)]


def test_whatever_waits_for_a_rank_that_stopped_says_so(tmp_path: Path) -> None:
    first, clipping, counting = world.run(2, _abandoned, tmp_path)[0]
    assert "the optimizers of 2 ranks could not be compared before the first step: a rank may have ended" in first
    for told in (clipping, counting):
        assert (
            "the sums of a step (max_grad_norm, skip_nonfinite, stats, groups of weights) could not be added over 2 ranks"
            in told
        )
