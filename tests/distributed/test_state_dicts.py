"""`optimizer.state_dict()` and `load_state_dict` of sharded optimizers, without torch.distributed.checkpoint."""

from __future__ import annotations

import copy
import io
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.distributed import checkpoint
from torch.distributed.tensor import DeviceMesh, DTensor, Replicate, Shard, distribute_tensor, init_device_mesh
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

from regkernels import optim, sparsity_report
from tests import ROOT
from tests.distributed import world
from tests.distributed.sharded_runs import AFTER, BEFORE, Case, Run, part_of
from tests.optim.checkpoint.cases import assert_identical, snapshot

ADAMW = Case("AdamW")
SHARDED = r"a DTensor with placements \[S\(0\)\] on ranks \[0, 1\]"
ANEW = r"Save and load with torch\.distributed\.checkpoint"

REFUSED: dict[str, tuple[int, str, str, str]] = {
    # ranks, layout, the file that a rank loads, what is said
    "another world": (
        3,
        "fsdp",
        "sharded-0",
        r"'exp_avg' of parameter 0 of param group 0 is " + SHARDED + r" .*the parameter is a DTensor .* on ranks "
        r"\[0, 1, 2\].*" + ANEW,
    ),
    "a world of one": (1, "fsdp", "sharded-1", SHARDED + r" .*the parameter is a DTensor .* on ranks \[0\].*" + ANEW),
    "other placements": (
        2,
        "tp",
        "sharded-{rank}",
        r"'exp_avg' of parameter 1 of param group 0 is " + SHARDED + r".*\[S\(1\)\].*" + ANEW,
    ),
    "a part": (
        2,
        "fsdp",
        "part-{rank}",
        r"'exp_avg' of parameter 0 of param group 0 is a plain tensor of shape \([56], 5\), the parameter is a DTensor .* of "
        r"shape \(11, 5\).*" + ANEW + r".*full_tensor\(\)",
    ),
    "a part of another world": (3, "fsdp", "part-0", r"plain tensor of shape \(6, 5\).*" + ANEW),
    "a count": (
        2,
        "fsdp",
        "count-{rank}",
        r"'step' of parameter 0 of param group 1 must be a plain tensor or a number, got a DTensor.*full_tensor\(\)",
    ),
    "one process": (
        1,
        "plain",
        "sharded-1",
        r"'exp_avg' of parameter 0 of param group 0 is "
        + SHARDED
        + r" \(\(5, 5\) of it here\), of which this process has "
        r"one part; the parameter is a plain tensor.*" + ANEW + r".*full_tensor\(\)",
    ),
}
TAKEN = {
    "fsdp": (2, "fsdp", ADAMW),
    "fsdp, 3 ranks": (3, "fsdp", ADAMW),
    "hsdp": (2, "hsdp", ADAMW),
    "both": (4, "fsdp+tp", ADAMW),
    "remainder": (3, "fsdp", Case("AdamW", {"param_rounding": "remainder"}, torch.bfloat16)),
    "weighted": (2, "tp", Case("AdamW", weighted=True)),
}
"""Ranks and layouts that a whole state dict is loaded in."""


def _save(rank: int, folder: Path) -> None:
    packed = Run(ADAMW, "fsdp").train(BEFORE).optimizers[0].state_dict()
    torch.save(packed, folder / f"sharded-{rank}.pt")
    for state in packed["state"].values():
        state.update({key: value.to_local() for key, value in state.items() if isinstance(value, DTensor)})
    torch.save(packed, folder / f"part-{rank}.pt")
    packed = Run(ADAMW, "fsdp").train(BEFORE).optimizers[0].state_dict()
    packed["state"][2]["step"] = distribute_tensor(torch.tensor(4.0), init_device_mesh("cpu", (2,)))
    torch.save(packed, folder / f"count-{rank}.pt")


def _held(optimizer: Any) -> Any:
    """All of an optimizer's state on this rank."""

    def local(value: Any) -> Any:
        return value.to_local() if isinstance(value, DTensor) else value

    packed = optimizer.state_dict()
    states = {key: {k: local(v) for k, v in state.items()} for key, state in packed["state"].items()}
    return snapshot({"state": states, "param_groups": packed["param_groups"]})


def _attempts(rank: int, folder: Path, attempts: dict[str, tuple[str, str]]) -> dict[str, str]:
    """What is said to each."""
    said = {}
    for name, (layout, file) in attempts.items():
        run = Run(ADAMW, layout).train(BEFORE)
        before = _held(run.optimizers[0])
        packed = torch.load(folder / f"{file.format(rank=rank)}.pt", weights_only=True)
        with pytest.raises((TypeError, ValueError)) as error:
            run.optimizers[0].load_state_dict(packed)
        assert_identical(_held(run.optimizers[0]), before)
        said[name] = str(error.value)
    return said


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    world.run(2, _save, folder)
    return folder


@pytest.fixture(scope="module")
def said(files: Path) -> dict[str, list[str]]:
    found = {}
    for ranks in (1, 2, 3):
        attempts = {name: (layout, file) for name, (size, layout, file, _) in REFUSED.items() if size == ranks}
        answers = world.run(ranks, _attempts, files, attempts)
        found.update({name: [answer[name] for answer in answers] for name in attempts})
    return found


@pytest.mark.parametrize("name", REFUSED)
def test_parts_of_another_layout_are_refused_on_every_rank(name: str, said: dict[str, list[str]]) -> None:
    for message in said[name]:
        assert re.search(REFUSED[name][3], message), message


def _load_of_rank_0(rank: int, folder: Path) -> str:
    optimizer = Run(ADAMW, "fsdp").optimizers[0]
    try:
        optimizer.load_state_dict(torch.load(folder / "sharded-0.pt", weights_only=True))
    except ValueError as error:
        return str(error)
    return ""


def test_what_another_rank_has_saved_is_refused(files: Path) -> None:
    own, others = world.run(2, _load_of_rank_0, files)
    assert own == ""
    assert re.search(
        r"'exp_avg' of parameter 0 .* saved by another rank, at \(0,\) of the mesh; this one is at \(1,\)", others
    )


EVEN = {
    # two layouts whose parts are of one shape on every rank, but not the same ones on all
    "placements": (([[0, 1], [2, 3]], (Shard(0), Replicate())), ([[0, 1], [2, 3]], (Replicate(), Shard(0)))),
    "meshes": (([[0, 1], [2, 3]], (Shard(0), Replicate())), ([[0, 2], [1, 3]], (Shard(0), Replicate()))),
}


def _even(rank: int) -> tuple[dict[str, str], dict[str, str]]:
    """What is said to a state of another layout, and to that of the next rank."""

    def said(state: Any, param: Any) -> str:
        optimizer = optim.SGD([torch.nn.Parameter(param)], lr=0.1, momentum=0.9)
        packed = {"state": {0: {"momentum_buffer": state}}, "param_groups": optimizer.state_dict()["param_groups"]}
        try:
            optimizer.load_state_dict(packed)
        except ValueError as error:
            return str(error)
        return ""

    of_layouts, of_ranks = {}, {}
    for name, layouts in EVEN.items():
        one, other = (
            distribute_tensor(torch.ones(4, 4), DeviceMesh("cpu", ranks), places) for ranks, places in layouts
        )
        of_layouts[name] = said(one, other)
        files: list[Any] = [None] * 4
        distributed.all_gather_object(files, pickle.dumps(one))
        of_ranks[name] = "".join(said(pickle.loads(file), one) for file in (files[rank], files[(rank + 1) % 4]))
    return of_layouts, of_ranks


def test_parts_of_one_shape_are_not_taken_for_each_other() -> None:
    for of_layouts, of_ranks in world.run(4, _even):
        for message in of_layouts.values():
            assert "returned fits only the mesh and the placements it was saved with" in message
        for message in of_ranks.values():
            assert message.count("was saved by another rank") == 1


def _take(rank: int, packed: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    """Loads one rank after the other: nobody can wait for an answer."""
    ended = {}
    for name, (layout, case, weights, states, schedule) in packed.items():
        run = Run(case, layout, resumed=True)
        with torch.no_grad():
            for param, part in zip(run.model.parameters(), weights, strict=True):
                param.copy_(part_of(part, param))
        for turn in range(distributed.get_world_size()):
            if turn == rank:
                run.optimizers[0].load_state_dict(states)
            distributed.barrier()
        torch.save(run.optimizers[0].state_dict(), io.BytesIO())  # also before the next step
        run.schedulers[0].load_state_dict(schedule)
        ended[name] = run.train(AFTER).result()
    return ended


@pytest.fixture(scope="module")
def taken() -> dict[str, list[Any]]:
    found = {}
    for ranks in (2, 3, 4):
        packed = {}
        for name, (size, layout, case) in TAKEN.items():
            if size == ranks:
                run = Run(case, "plain").train(BEFORE)
                states = snapshot(run.optimizers[0].state_dict())
                packed[name] = (layout, case, list(run.model.parameters()), states, run.schedulers[0].state_dict())
        answers = world.run(ranks, _take, packed)
        found.update({name: [answer[name] for answer in answers] for name in packed})
    return found


@pytest.mark.parametrize("name", TAKEN)
def test_each_rank_takes_its_part_of_a_whole_state_dict(name: str, taken: dict[str, list[Any]]) -> None:
    alone = Run(TAKEN[name][2], "plain").train([*BEFORE, *AFTER]).result()
    for result in taken[name]:
        assert_identical(result, alone)


def _offloaded(rank: int) -> list[Tensor]:
    """A parameter as FSDP2's CPUOffloadPolicy leaves it: its mesh is one of GPUs, its memory is not."""
    mesh = DeviceMesh.from_group(distributed.group.WORLD, "cuda")
    spec = DTensorSpec(mesh, (Shard(0),), TensorMeta(torch.Size((6, 4)), (4, 1), torch.float32))
    param = torch.nn.Parameter(DTensor(torch.zeros(3, 4), spec, requires_grad=False))
    optimizer = optim.SGD([param], lr=0.1, momentum=0.9)
    whole = torch.arange(24.0).reshape(6, 4)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": {0: {"momentum_buffer": whole}}, "param_groups": groups})
    param.grad = DTensor(torch.ones(3, 4), spec, requires_grad=False)
    optimizer.step()
    return [optimizer.state[param]["momentum_buffer"].to_local(), 0.9 * whole[3 * rank : 3 * rank + 3] + 1]


def test_parts_of_offloaded_parameters_stay_on_the_cpu() -> None:
    for found, expected in world.run(2, _offloaded):
        assert found.device.type == "cpu"
        torch.testing.assert_close(found, expected)


def _copies(rank: int) -> list[Any]:
    optimizer = Run(Case("AdamW", {"param_rounding": "remainder"}, torch.bfloat16), "fsdp").train(BEFORE).optimizers[0]
    pickled = pickle.loads(pickle.dumps(optimizer))
    return [_held(one) for one in (optimizer, copy.deepcopy(optimizer), pickled)]


def test_an_optimizer_can_be_copied_and_pickled() -> None:
    for original, *copies in world.run(2, _copies):
        for one in copies:
            assert_identical(one, original)


def _page(rank: int, folder: Path, blocks: list[str]) -> dict[str, Any]:
    os.chdir(folder)
    found: dict[str, Any] = {}
    names: dict[str, Any] = {"print": lambda report: found.update(report=str(report))}
    for number, block in enumerate(blocks):
        before = _held(names["optimizer"]) if number == 1 else None
        exec(block, names)
        found[f"its optimizer {number}"] = _held(names["its_optimizer"])
        found[f"optimizer {number}"] = _held(names["optimizer"])
        if before is not None:
            state = names["parts"](names["resumed"], names["its_optimizer"])
            checkpoint.load(state, checkpoint_id="later")  # in place
            found["at the call"], found["in the file"] = before, _held(names["its_optimizer"])
    found["whole"] = snapshot({name: param.full_tensor() for name, param in names["model"].named_parameters()})
    if rank == 0:
        found["plain"] = snapshot(names["plain"].state_dict())
        found["report of plain"] = str(sparsity_report(names["plain"]))
    return found


def test_the_page_saves_what_it_loads(tmp_path: Path) -> None:
    page = ROOT / "docs" / "sharded_checkpoints.md"
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S)
    assert len(blocks) == 4
    ranks = world.run(2, _page, tmp_path, blocks)
    assert_identical(ranks[0]["plain"], ranks[0]["whole"])
    assert ranks[0]["report"] == ranks[0]["report of plain"]
    for found in ranks:
        assert_identical(found["its optimizer 0"], found["optimizer 0"])
        assert_identical(found["in the file"]["state"], found["at the call"]["state"])
        assert_identical(found["its optimizer 2"]["state"], found["optimizer 2"]["state"])
