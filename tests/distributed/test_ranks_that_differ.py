"""Optimizers that are not the same on all ranks: found out on every rank, soon, with words that say what differs."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from regkernels import optim
from regkernels.distributed import check_agreement
from tests.distributed import world


def _spread(tensor: Tensor, placement: Any = None, mesh: DeviceMesh | None = None) -> nn.Parameter:
    mesh = mesh or init_device_mesh("cpu", (distributed.get_world_size(),))
    return nn.Parameter(distribute_tensor(tensor, mesh, [placement or Shard(0)], src_data_rank=None))


def _sgd(*params: Any, **options: Any) -> optim.Optimizer:
    return optim.SGD(list(params) or [_spread(torch.ones(5, 3))], **{"lr": 0.1, **options})


MADE: dict[str, tuple[Callable[[int], optim.Optimizer], str]] = {
    "lr": (lambda rank: _sgd(lr=0.1 + rank), r"'lr' of param group 0 is 0\.1 on rank 0; 1\.1 on rank 1"),
    "lr, a tensor": (
        lambda rank: _sgd(lr=torch.tensor(1.0 + rank)),
        r"'lr' of param group 0 is 1\.0 on rank 0; 2\.0 on",
    ),
    "a mode": (
        lambda rank: _sgd(l1_mode=("prox", "decoupled")[rank]),
        r"'l1_mode' of param group 0 is 'prox' on rank 0; 'decoupled' on rank 1",
    ),
    "what clips": (
        lambda rank: _sgd(max_grad_norm=1.0 + rank),
        r"arguments of the constructor is .*max_grad_norm=1\.0",
    ),
    "only one clips": (lambda rank: _sgd(max_grad_norm=(None, 1.0)[rank]), "arguments of the constructor"),
    "only one has stats": (lambda rank: _sgd(stats=rank == 1), "arguments of the constructor"),
    "class": (
        lambda rank: (optim.SGD, optim.Adam)[rank]([_spread(torch.ones(4))], lr=0.1),
        "type is SGD on rank 0; Adam on rank 1",
    ),
    "number of parameters": (
        lambda rank: _sgd(*[_spread(torch.ones(4)) for _ in range(2 + rank)]),
        "the number of parameters of param group 0 is 2 on rank 0; 3 on rank 1",
    ),
    "number of groups": (
        lambda rank: _sgd({"params": [_spread(torch.ones(4))]}, *[{"params": [_spread(torch.ones(2))]}] * rank),
        "the number of param groups is 1 on rank 0; 2 on rank 1",
    ),
    "shapes": (
        lambda rank: _sgd(_spread(torch.ones(4 + 2 * rank, 3))),
        r"parameter 0 of param group 0 is torch\.float32 of shape \(4, 3\), .* on rank 0; .*\(6, 3\).* on rank 1",
    ),
    "shapes of plain ones": (
        lambda rank: _sgd(_spread(torch.ones(4)), nn.Parameter(torch.ones(1 + rank))),
        r"parameter 1 of param group 0 is torch\.float32 of shape \(1,\) on rank 0; .* \(2,\) on rank 1",
    ),
    "dtypes": (
        lambda rank: _sgd(_spread(torch.ones(4, dtype=(torch.float32, torch.bfloat16)[rank]))),
        r"is torch\.float32 of .* on rank 0; torch\.bfloat16 of .* on rank 1",
    ),
    "placements": (
        lambda rank: _sgd(_spread(torch.ones(4)), _spread(torch.ones(4, 4), Shard(rank))),
        r"parameter 1 .*placements \[S\(0\)\].* on rank 0; .*placements \[S\(1\)\].* on rank 1",
    ),
}
"""Optimizers by rank, and what is said of them."""


def _message(function: Callable[[], Any]) -> str:
    try:
        function()
    except (ValueError, TypeError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def _with_gradients(optimizer: optim.Optimizer) -> optim.Optimizer:
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.ones_like(param)
    return optimizer


def _made(rank: int) -> dict[str, tuple[str, str, bool]]:
    found = {}
    for name, (make, _) in MADE.items():
        optimizer = _with_gradients(make(rank))
        asked, stepped = _message(lambda: check_agreement(optimizer)), _message(optimizer.step)  # noqa: B023
        found[name] = asked, stepped, not vars(optimizer)["state"]
        distributed.barrier()
    return found


@pytest.fixture(scope="module")
def made() -> list[dict[str, tuple[str, str, bool]]]:
    return world.run(2, _made)


@pytest.mark.parametrize("name", MADE)
def test_before_and_in_the_first_step(made: list[dict[str, tuple[str, str, bool]]], name: str) -> None:
    expected = f"ValueError: the ranks have different optimizers: .*{MADE[name][1]}"
    for asked, stepped, unchanged in (of_rank[name] for of_rank in made):
        assert asked == stepped and unchanged
        with pytest.raises(ValueError, match=MADE[name][1]):
            raise ValueError(asked)
        assert asked.startswith(expected.split(".*")[0]) and "in the same way on every rank" in asked


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lr, with stats": ({"stats": True}, {"lr": 0.3}),
    "weight decay, with stats": ({"stats": True}, {"weight_decay": 0.3}),
    "lr, clipped": ({"max_grad_norm": 1.0}, {"lr": 0.3}),
    "l1, clipped with stats": ({"max_grad_norm": 1.0, "stats": True}, {"l1": 0.3}),
    "momentum, skipping": ({"skip_nonfinite": True, "momentum": 0.9}, {"momentum": 0.3}),
}
"""Arguments of the constructor, and what the last rank alone changes before the third step."""


def _changed(rank: int) -> dict[str, list[str]]:
    found = {}
    for name, (options, change) in CHANGES.items():
        param = _spread(torch.ones(5, 3))
        optimizer = _with_gradients(_sgd(param, **options))
        said = []
        for step in range(1, 5):
            if step == 3 and rank == distributed.get_world_size() - 1:
                optimizer.param_groups[0].update(change)
            said.append(_message(optimizer.step))
        found[name] = said
        distributed.barrier()
    return found


@pytest.fixture(scope="module", params=[2, 3])
def changed(request: pytest.FixtureRequest) -> list[dict[str, list[str]]]:
    return world.run(request.param, _changed)


@pytest.mark.parametrize("name", CHANGES)
def test_in_a_later_step(changed: list[dict[str, list[str]]], name: str) -> None:
    """At once where a norm is needed, and where only `stats` are, in the step after."""
    options, change = CHANGES[name]
    late = set(options) == {"stats"}
    ((key, value),) = change.items()
    for said in (of_rank[name] for of_rank in changed):
        first = 3 if late else 2
        assert said[:first] == ["nothing"] * first
        assert f"{key!r} of param group 0 is " in said[first] and f"; {value} on rank {len(changed) - 1}" in said[first]


def _agreeing(rank: int) -> list[str]:
    names = ["weight"] if rank else None
    plain = nn.Parameter(torch.ones(3))
    optimizer = optim.AdamW([{"params": [plain], **({"param_names": names} if names else {})}])
    lazy = optim.SGD([*nn.LazyLinear(3).parameters()], lr=0.1)
    return [_message(lambda: check_agreement(one)) for one in (optimizer, lazy)]  # noqa: B023


def test_ranks_that_agree_hear_nothing() -> None:
    assert world.run(2, _agreeing) == [["nothing"] * 2] * 2


def _refusals(rank: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    mesh, first = init_device_mesh("cpu", (2,)), distributed.new_group([0])
    alone = DeviceMesh("cpu", [0])
    plain = nn.Parameter(torch.ones(3))
    yield "ok" if rank == 0 else "TypeError: process_group must be", lambda: _sgd(plain, process_group=first)
    yield (
        "TypeError: process_group must be a torch.distributed.ProcessGroup",
        lambda: _sgd(plain, process_group="world"),
    )
    yield "TypeError: process_group must be", lambda: _sgd(plain, process_group=mesh)
    yield "TypeError: group must be", lambda: check_agreement(_sgd(plain), group="world")  # type: ignore[arg-type]
    yield "ok" if rank == 0 else "TypeError: group must be", lambda: check_agreement(_sgd(plain), group=first)
    yield "TypeError: check_agreement compares", lambda: check_agreement(torch.optim.SGD([plain], lr=0.1))  # type: ignore[arg-type]
    partial = nn.Parameter(DTensor.from_local(torch.ones(3), mesh, [Partial()]))
    yield "ValueError: parameter 0 of param group 0 is a DTensor with placements [P(sum)]", lambda: _sgd(partial)
    elsewhere = _spread(torch.ones(4), mesh=alone)
    yield (
        "ok" if rank == 0 else "ValueError: parameter 0 of param group 0 is a DTensor on the mesh",
        lambda: _sgd(elsewhere),
    )
    weights = {"params": [_spread(torch.ones(4))], "l1_weights": [torch.ones(4)]}
    yield "ValueError: l1_weights[0] is a plain tensor", lambda: _sgd(weights, l1=0.1)
    pickled = _sgd(plain, process_group=distributed.group.WORLD)
    yield "TypeError: an optimizer with a process_group cannot be pickled", lambda: pickle.dumps(pickled)
    for first_is_right in (False, True):
        own = _sgd(_spread(torch.ones(4, 3)))
        (param,) = own.param_groups[0]["params"]
        if first_is_right:
            _with_gradients(own).step()
        param.grad = torch.ones(4, 3)
        yield "RuntimeError: the gradient of parameter 0 of param group 0 is a plain tensor", own.step
        wide = init_device_mesh("cpu", (1, 2))
        param.grad = DTensor.from_local(torch.ones(2, 3), wide, [Replicate(), Shard(0)])
        yield (
            "RuntimeError: the gradient of parameter 0 of param group 0 is a DTensor with placements [R, S(0)]",
            own.step,
        )
        param.grad = DTensor.from_local(torch.ones(2, 3), DeviceMesh("cpu", [1, 0]), [Shard(0)])
        yield (
            "RuntimeError: the gradient of parameter 0 of param group 0 is a DTensor with placements [S(0)]",
            own.step,
        )


def _refused(rank: int) -> list[tuple[str, str]]:
    return [(expected, _message(call).replace("nothing", "ok")) for expected, call in _refusals(rank)]


def test_what_no_rank_can_work_with_is_refused() -> None:
    for of_rank in world.run(2, _refused):
        for expected, said in of_rank:
            assert said.startswith(expected), said
