"""Sharded checkpoints: saved in one world, continued in another, with torch's own functions and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint import state_dict as sharded
from torch.distributed.fsdp import fully_shard

from regkernels import optim
from tests.distributed import world
from tests.distributed.sharded_runs import AFTER, BEFORE, Case, Run, resume, save
from tests.optim.checkpoint.cases import assert_identical

BF16 = torch.bfloat16

ELEMENTWISE = {
    "adamw": Case("AdamW", loaded=((1, "fsdp"), (3, "fsdp"), (4, "fsdp+tp"))),
    "adamw, flattened": Case("AdamW", form="flattened", loaded=((1, "plain"), (3, "tp"), (4, "hsdp"))),
    "adamw, from 1": Case("AdamW", saved=(1, "plain"), loaded=((2, "tp"), (3, "fsdp"))),
    "adamw, from 3": Case("AdamW", saved=(3, "fsdp"), loaded=((1, "plain"), (2, "fsdp"))),
    "adamw, from 4": Case("AdamW", saved=(4, "fsdp+tp"), form="flattened", loaded=((2, "fsdp"), (3, "fsdp"))),
    "adamw, from data parallel": Case("AdamW", saved=(2, "ddp"), loaded=((3, "fsdp"), (2, "tp"))),
    "adamw, to data parallel": Case("AdamW", saved=(4, "hsdp"), loaded=((2, "ddp"),)),
    "adamw, asynchronous": Case("AdamW", asynchronous=True, loaded=((3, "fsdp"),)),
    "adamw, full": Case("AdamW", form="full", loaded=((1, "fsdp"), (3, "fsdp"), (4, "hsdp"))),
    "adamw, broadcast": Case("AdamW", form="broadcast", loaded=((3, "fsdp"), (4, "fsdp+tp"))),
    "adamw, direct": Case("AdamW", form="direct", saved=(2, "fsdp"), loaded=((2, "fsdp"),)),
    "amsgrad": Case("Adam", {"amsgrad": True}, saved=(2, "hsdp"), form="flattened", loaded=((3, "fsdp"), (4, "hsdp"))),
    "momentum": Case("SGD", {"momentum": 0.9}, saved=(2, "tp"), loaded=((1, "plain"), (4, "fsdp+tp"))),
    "sgd": Case("SGD", loaded=((3, "fsdp"),)),
    "lion": Case("Lion", saved=(2, "tp"), form="flattened", loaded=((3, "tp"), (4, "fsdp"))),
    "radam": Case("RAdam", loaded=((3, "fsdp"),)),
    "rmsprop": Case("RMSprop", {"momentum": 0.9, "centered": True}, form="flattened", loaded=((3, "tp"),)),
    "adagrad": Case("Adagrad", {"initial_accumulator_value": 0.1}, loaded=((4, "hsdp"),)),
    "two": Case("AdamW", second=("SGD", {"lr": 0.01, "momentum": 0.5}), loaded=((1, "plain"), (3, "fsdp"))),
    "two, flattened": Case("Lion", form="flattened", second=("Adagrad", {}), loaded=((3, "tp"),)),
    "bfloat16": Case("Adam", dtype=BF16, loaded=((1, "plain"), (3, "fsdp"))),
    "remainder": Case("AdamW", {"param_rounding": "remainder"}, BF16, loaded=((3, "fsdp"), (4, "fsdp+tp"))),
    "remainder, asynchronous": Case(
        "AdamW", {"param_rounding": "remainder"}, BF16, form="flattened", asynchronous=True, loaded=((3, "tp"),)
    ),
    "master": Case("SGD", {"param_rounding": "master", "momentum": 0.9}, BF16, form="flattened", loaded=((3, "fsdp"),)),
    "master, direct": Case("AdamW", {"param_rounding": "master"}, BF16, form="direct", loaded=((2, "fsdp"),)),
    "stochastic": Case(
        "AdamW",
        {"param_rounding": "stochastic", "state_dtype": BF16, "seed": 3},
        BF16,
        loaded=((1, "plain"), (4, "fsdp+tp")),
    ),
    "narrow": Case(
        "Adam",
        {"state_dtype": BF16, "amsgrad": True},
        saved=(2, "tp"),
        form="flattened",
        loaded=((3, "fsdp"), (4, "hsdp")),
    ),
    "weighted": Case("AdamW", weighted=True, loaded=((1, "plain"), (3, "fsdp"))),
    "weighted, flattened": Case("AdamW", weighted=True, form="flattened", loaded=((4, "hsdp"),)),
}
"""Go on anywhere as in one process that was never interrupted, to the last bit."""

IN_THE_SAME_WORLD = {
    "clipped": Case("AdamW", {"max_grad_norm": 0.5, "stats": True}, loaded=((2, "fsdp"),)),
    "skipping": Case("SGD", {"skip_nonfinite": True, "momentum": 0.9}, saved=(2, "tp"), loaded=((2, "tp"),)),
    "trained": Case("AdamW", backward=True, loaded=((2, "fsdp"),)),
}
"""Sums over ranks are others in another world."""

EXCHANGED = {
    "from torch": Case("AdamW", dtype=torch.float64, module=("theirs", "ours"), loaded=((1, "plain"), (3, "fsdp"))),
    "to torch": Case("Adam", dtype=torch.float64, module=("ours", "theirs"), form="flattened", loaded=((3, "fsdp"),)),
}
CASES = ELEMENTWISE | IN_THE_SAME_WORLD | EXCHANGED
LOADS = [(name, *where) for name, case in CASES.items() for where in case.loaded]

Ended = dict[tuple[str, int, str], list[Any]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, Ended]:
    """How the runs ended on each rank that were saved, and those that went on."""
    folder = tmp_path_factory.mktemp("checkpoints")
    saved: Ended = {}
    loaded: Ended = {}
    for ranks in range(1, 5):
        own = {name: case for name, case in CASES.items() if case.saved[0] == ranks}
        answers = world.run(ranks, save, folder, own, timeout=180)
        saved.update({(name, *own[name].saved): [answer[name] for answer in answers] for name in own})
    for ranks in range(1, 5):
        where = {name: (CASES[name], layout) for name, size, layout in LOADS if size == ranks}
        answers = world.run(ranks, resume, folder, where, timeout=180)
        loaded.update({(name, ranks, where[name][1]): [answer[name] for answer in answers] for name in where})
    return saved, loaded


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_goes_on_in_any_world_bit_for_bit(name: str, runs: tuple[Ended, Ended]) -> None:
    alone = Run(CASES[name], "plain").train([*BEFORE, *AFTER]).result()
    for ended in runs:
        for where, ranks in ended.items():
            if where[0] == name:
                for rank, result in enumerate(ranks):
                    assert_identical(result, alone, f"{where}, rank {rank}: ")


@pytest.mark.parametrize("name", IN_THE_SAME_WORLD)
def test_goes_on_in_the_same_world_bit_for_bit(name: str, runs: tuple[Ended, Ended]) -> None:
    case = CASES[name]
    whole, resumed = (ended[name, *case.saved] for ended in runs)
    for rank in range(case.saved[0]):
        assert_identical(resumed[rank], whole[rank], f"rank {rank}: ")


@pytest.mark.parametrize("name", EXCHANGED)
def test_a_checkpoint_goes_to_torchs_optimizer_and_back(name: str, runs: tuple[Ended, Ended]) -> None:
    """Each does its own arithmetic, in float64 here."""
    case = CASES[name]
    alone = Run(case._replace(module=("theirs", "theirs")), "plain").train([*BEFORE, *AFTER]).result()
    for where, ranks in runs[1].items():
        for result in ranks if where[0] == name else []:
            for param, states in alone.items():
                for key in states.keys() - {"options"}:
                    torch.testing.assert_close(result[param][key], states[key], rtol=1e-12, atol=1e-14)
                assert result[param]["options"]["lr"] == states["options"]["lr"]


@pytest.mark.parametrize("form", ["nested", "flattened"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_files_hold_each_element_once(form: str, asynchronous: bool, sizes: dict[tuple[str, bool], int]) -> None:
    """Not the memory that states lie in together, nor copies of other ranks."""
    elements = WIDTH**2 * 3  # of the weight and two states, in float32
    assert 4 * elements < sizes[form, asynchronous] < 1.1 * 4 * elements


WIDTH = 300


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], int]:
    return world.run(2, _sizes, tmp_path_factory.mktemp("sizes"))[0]


def _sizes(rank: int, folder: Path) -> dict[tuple[str, bool], int]:
    model = nn.Linear(WIDTH, WIDTH)
    fully_shard(model)
    optimizer = optim.AdamW(model.parameters(), l1=1e-3)
    model.weight.grad, model.bias.grad = torch.ones_like(model.weight), torch.ones_like(model.bias)
    optimizer.step()
    found = {}
    for form in ("nested", "flattened"):
        options = sharded.StateDictOptions(flatten_optimizer_state_dict=form == "flattened")
        for asynchronous in (False, True):
            path = folder / f"{form}-{asynchronous}"
            packed = sharded.get_optimizer_state_dict(model, optimizer, options=options)
            state = {"model": model.state_dict(), "optimizer": packed}
            if asynchronous:
                checkpoint.async_save(state, checkpoint_id=path).result()
            else:
                checkpoint.save(state, checkpoint_id=path)
            distributed.barrier()
            found[form, asynchronous] = sum(file.stat().st_size for file in path.iterdir())
    return found
