"""Steps on what each rank holds: weights and states have the bits of one process that has whole tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

from regkernels import backends
from tests.distributed import world
from tests.distributed.topologies import TOPOLOGIES, Part, assembled, local, parts, whole, whole_parts
from tests.support import cases, engine
from tests.support.penalised_cases import PENALTIES, some_weights

STEPS = 3
STRENGTHS: dict[str, Any] = {"lr": 0.0123, "l1": 0.37, "weight_decay": 0.21}
BFLOAT16 = torch.bfloat16


class Case(NamedTuple):
    """What is asked of an optimizer. ``weights``: whether l1 is weighed by element."""

    rule: str
    options: dict[str, Any] = {}  # noqa: RUF012
    dtype: torch.dtype = torch.float32
    weights: bool = False
    backend: str = "cpp"

    @property
    def asked(self) -> dict[str, Any]:
        return {**STRENGTHS, "l1_mode": cases.l1_modes(self.rule)[0], **self.options}


CASES = {
    **{rule: Case(rule) for rule in cases.RULES},
    **{
        f"decay {mode}": Case("adam", {"weight_decay_mode": mode})
        for mode in ("coupled", "decoupled", "prox", "cautious")
    },
    **{f"l1 {mode}": Case("momentum", {"l1_mode": mode}) for mode in ("prox", "decoupled", "subgradient")},
    **{
        penalty: Case("adamw", {"weight_decay_mode": "prox", "l1": 0.0, **options})
        for penalty, options in PENALTIES.items()
        if penalty != "weighted"
    },
    "weighted": Case("rmsprop", weights=True),
    **{
        f"bfloat16, {rounding}": Case("adamw", {"param_rounding": rounding}, BFLOAT16)
        for rounding in ("nearest", "remainder", "master")
    },
    "float64": Case("amsgrad", dtype=torch.float64),
    "complex": Case("dampening", {"l1": 0.0}, torch.complex64),
    "reference": Case("amsgrad", backend="reference"),
    "reference, weighted": Case("momentum", weights=True, backend="reference"),
    "reference, bfloat16": Case("lion", {"param_rounding": "remainder"}, BFLOAT16, backend="reference"),
}


FEW = ("sgd", "amsgrad", "rmsprop_both", "lion", "weighted", "bfloat16, remainder", "complex", "reference, weighted")
IN_FULL = ("2 ranks, rows", "3 ranks, some plain", "FSDP2 and tensor parallel")
"""What is tried in each topology, and where everything is."""


def _cases(topology: str) -> tuple[str, ...]:
    return tuple(CASES) if topology in IN_FULL else FEW


def _groups(params: Sequence[Tensor], case: Case, l1_weights: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Two param groups, of which the second learns more slowly."""
    groups: list[dict[str, Any]] = []
    for begin, lr in ((0, 0.0123), (1, 0.0071)):
        groups.append({"params": list(params[begin::2]), "lr": lr})
        if case.weights:
            groups[-1]["l1_weights"] = list(l1_weights[begin::2])
    return groups


def _train(held: Sequence[Part], case: Case) -> tuple[list[dict[str, Tensor]], list[int]]:
    """Weight and states of each parameter on this rank, and how many messages each step took. In the second step some
    parameters have no gradient."""
    messages = []
    shapes = [tuple(part.like.shape) for part in held]
    weights = whole(shapes, case.dtype, 0)
    params = [nn.Parameter(part.of(weight)) for part, weight in zip(held, weights, strict=True)]
    l1_weights = [part.of(some_weights(weight)) for part, weight in zip(held, weights, strict=True) if case.weights]
    with backends.use(case.backend):
        optimizer = engine.make(case.rule, _groups(params, case, l1_weights), **case.asked)
        for step in range(1, STEPS + 1):
            for number, gradient in enumerate(whole(shapes, case.dtype, step)):
                none = step == 2 and number % 4 == 1
                params[number].grad = None if none else held[number].of(gradient, offset=number % 3)
            with CommDebugMode() as talk:
                optimizer.step()
            messages.append(talk.get_total_counts())
    found = []
    for param in params:
        state = optimizer.state[param]
        for name, value in state.items():
            assert isinstance(value, DTensor) == (isinstance(param, DTensor) and name != "step"), name
            assert not isinstance(value, DTensor) or value.placements == param.placements, name
            assert name == "step" or value.shape == param.shape, name
        found.append({"weight": local(param.detach()), **{name: local(value) for name, value in state.items()}})
    return found, messages


def _on_ranks(rank: int, names: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in names:
        held = parts(TOPOLOGIES[name])
        found[name] = [part.index for part in held], {case: _train(held, CASES[case]) for case in _cases(name)}
    return found


@pytest.fixture(scope="module")
def ranks() -> dict[str, list[Any]]:
    """What each rank found, by topology."""
    return world.run_each(_on_ranks, {name: topology.ranks for name, topology in TOPOLOGIES.items()})


@pytest.mark.parametrize(("topology", "case"), [(name, case) for name in TOPOLOGIES for case in _cases(name)])
def test_bits_are_those_of_one_process(ranks: dict[str, list[Any]], topology: str, case: str) -> None:
    held = ranks[topology]
    for number, expected in enumerate(_train(whole_parts(TOPOLOGIES[topology]), CASES[case])[0]):
        indices = [of_rank[0][number] for of_rank in held]
        found = [of_rank[1][case][0][number] for of_rank in held]
        assert all(list(of_rank) == list(expected) for of_rank in found)
        for name, value in expected.items():
            if name == "step":
                assert all(torch.equal(of_rank[name], value) for of_rank in found)
            else:
                got = assembled(value.shape, indices, [of_rank[name] for of_rank in found])
                assert torch.equal(got, value), (number, name)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_elementwise_steps_take_no_message(ranks: dict[str, list[Any]], topology: str) -> None:
    """But for the first one, in which the ranks compare their optimizers."""
    for _, trained in ranks[topology]:
        for case, (_, messages) in trained.items():
            assert messages[0] > 0 and messages[1:] == [0] * (STEPS - 1), case
