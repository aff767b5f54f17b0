"""What a step adds up over ranks: the norm it clips by, whether it is left out, and `stats`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor.debug import CommDebugMode

from regkernels import backends
from tests.distributed import world
from tests.distributed.topologies import TOPOLOGIES, Part, assembled, local, parts, whole, whole_parts
from tests.support import engine

LEFT_OUT = 2
"""The step in which one rank meets a NaN, or a scaler's overflow."""

STRENGTHS: dict[str, Any] = {"lr": 0.0123, "l1": 0.037, "weight_decay": 0.21}


class Case(NamedTuple):
    """``spoils``: what one rank meets in a step that is then left out: "nan" in a gradient, "found_inf" from a scaler.
    ``messages``: of a step, the first one aside."""

    rule: str
    options: dict[str, Any]
    messages: int
    spoils: str = ""
    first: int = LEFT_OUT
    backend: str = "cpp"


CASES = {
    "clipped": Case("adamw", {"max_grad_norm": 0.7}, 1),
    "stats": Case("momentum", {"stats": True}, 1),
    "clipped, with stats": Case("rmsprop", {"max_grad_norm": 0.7, "stats": True}, 2),
    "finite": Case("adam", {"skip_nonfinite": True}, 1),
    "NaN": Case("adam", {"skip_nonfinite": True, "stats": True}, 2, "nan"),
    "NaN in the first step": Case("momentum", {"skip_nonfinite": True, "stats": True}, 2, "nan", 1),
    "NaN in the first clipped step": Case("adagrad", {"skip_nonfinite": True, "max_grad_norm": 0.7}, 1, "nan", 1),
    "overflow": Case("radam", {"amp_scaling": True}, 1, "found_inf"),
    "overflow in the first step": Case("lion", {"amp_scaling": True, "stats": True, "l1": 0.0}, 2, "found_inf", 1),
    "overflow, clipped": Case("adamw", {"amp_scaling": True, "max_grad_norm": 0.7, "stats": True}, 2, "found_inf"),
    "reference": Case("adamw", {"max_grad_norm": 0.7, "stats": True}, 2, backend="reference"),
    "reference, NaN": Case("adamw", {"skip_nonfinite": True, "stats": True}, 2, "nan", 1, "reference"),
}


class Step(NamedTuple):
    messages: int
    bytes: int
    stats: dict[str, Tensor]


def _train(held: Sequence[Part], case: Case, rank: int | None) -> tuple[list[dict[str, Tensor]], list[Step]]:
    """``rank``: None for one process, which takes no step where the ranks leave it out."""
    shapes = [tuple(part.like.shape) for part in held]
    params = [nn.Parameter(part.of(tensor)) for part, tensor in zip(held, whole(shapes, seed=0), strict=True)]
    steps = []
    with backends.use(case.backend):
        groups = [{"params": params[::2]}, {"params": params[1::2], "lr": 0.0071}]
        optimizer = engine.make(case.rule, groups, **{**STRENGTHS, **case.options})
        for step in (1, 2, 3):
            spoils = case.spoils if step == case.first else ""
            gradients = whole(shapes, seed=step)
            if spoils == "nan":
                gradients[_sharded(held)].view(-1)[0] = math.nan  # rank 0 has it, and replicas of that
            for number, gradient in enumerate(gradients):
                params[number].grad = held[number].of(gradient, offset=number % 3)
            if case.options.get("amp_scaling"):
                optimizer.grad_scale = torch.tensor(1.0)
                optimizer.found_inf = torch.tensor(float(bool(spoils) and rank is not None and rank % 2 == 1))
            if spoils and rank is None:
                continue
            with counted() as talk:
                optimizer.step()
                sums = getattr(optimizer, "stats", None)
                stats = {} if sums is None else sums._asdict()
            steps.append(Step(talk[0], talk[1], stats))
    found = [
        {"weight": local(param.detach()), **{name: local(value) for name, value in optimizer.state[param].items()}}
        for param in params
    ]
    return found, steps


def _sharded(held: Sequence[Part]) -> int:
    """The number of a parameter that is spread over ranks; 0 in one process."""
    spread = [number for number, part in enumerate(held) if part.is_sharded]
    return spread[-1] if spread else 0


@contextmanager
def counted() -> Iterator[list[int]]:
    """How many messages there are meanwhile, and the bytes of those that `torch.distributed.all_reduce` sends."""
    counts, reduce = [0, 0], torch.distributed.all_reduce

    def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        counts[1] += tensor.nbytes
        return reduce(tensor, *args, **kwargs)

    torch.distributed.all_reduce = counted
    try:
        with CommDebugMode() as talk:
            yield counts
    finally:
        torch.distributed.all_reduce = reduce
        counts[0] = talk.get_total_counts()


def _on_ranks(rank: int, names: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in names:
        held = parts(TOPOLOGIES[name])
        found[name] = [part.index for part in held], {case: _train(held, CASES[case], rank) for case in CASES}
    return found


@pytest.fixture(scope="module")
def ranks() -> dict[str, list[Any]]:
    """What each rank found, by topology."""
    return world.run_each(_on_ranks, {name: topology.ranks for name, topology in TOPOLOGIES.items()})


def _close(found: Tensor, expected: Tensor) -> bool:
    if not expected.numel():
        return found.shape == expected.shape
    return bool((found - expected).abs().max() <= 1e-6 * expected.abs().max())


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("case", CASES)
def test_training_is_that_of_one_process(ranks: dict[str, list[Any]], topology: str, case: str) -> None:
    held, asked = ranks[topology], CASES[case]
    expected, steps = _train(whole_parts(TOPOLOGIES[topology]), asked, None)
    for number, of_param in enumerate(expected):
        for name, value in of_param.items():
            found = [of_rank[1][case][0][number][name] for of_rank in held]
            if name == "step":
                assert all(torch.equal(one, value) for one in found)
            else:
                got = assembled(value.shape, [of_rank[0][number] for of_rank in held], found)
                assert _close(got, value), (number, name)
    taken = [
        step for index, step in enumerate(held[0][1][case][1], start=1) if not asked.spoils or index != asked.first
    ]
    for step, alone in zip(taken, steps, strict=True):
        assert list(step.stats) == list(alone.stats)
        for name, value in alone.stats.items():
            assert _close(step.stats[name], value), name


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("case", CASES)
def test_all_ranks_have_the_same_sums_after_few_short_messages(
    ranks: dict[str, list[Any]], topology: str, case: str
) -> None:
    of_ranks = [of_rank[1][case][1] for of_rank in ranks[topology]]
    for index, step in enumerate(of_ranks[0]):
        for other in of_ranks:
            assert {name: value.tolist() for name, value in other[index].stats.items() if name != "grad_norm"} == {
                name: value.tolist() for name, value in step.stats.items() if name != "grad_norm"
            }
            norms = [one.stats.get("grad_norm", torch.zeros((), dtype=torch.float64)) for one in (step, other[index])]
            assert torch.equal(norms[0].view(torch.int64), norms[1].view(torch.int64))
            assert other[index].bytes <= 512
            if index > 0:
                assert other[index].messages == CASES[case].messages


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_norm_of_a_step_that_is_left_out_shows_why(ranks: dict[str, list[Any]], topology: str) -> None:
    for case, asked in CASES.items():
        if asked.spoils == "nan" and asked.options.get("stats"):
            for of_rank in ranks[topology]:
                assert of_rank[1][case][1][asked.first - 1].stats["grad_norm"].isnan(), case
