"""Two ranks that hold parts of the parameters have the bits of one process that holds all of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from tests.distributed import world
from tests.distributed.sharded_runs import whole
from tests.fuzz import engine as fuzz
from tests.fuzz.profiles import fuzzed
from tests.fuzz.strategies import Plan, plans
from tests.support import cases, engine

KERNELS = engine.kernels(threads=(1,))[-1]


class Spread(NamedTuple):
    """A plan, and for each of its parameters the dimension that is sharded; "all": every rank has it; None: a plain tensor."""

    plan: Plan
    placements: tuple[int | str | None, ...]


@st.composite
def spreads(draw: st.DrawFn) -> Spread:
    plan = draw(plans(cases.DTYPES, elementwise=True))
    listed = [param for group in plan.groups for param in group.params]
    return Spread(
        plan,
        tuple(
            draw(st.sampled_from([None, "all", *range(len(param.shape)), *range(len(param.shape))])) for param in listed
        ),
    )


@fuzzed(1)
@given(drawn=st.lists(spreads(), min_size=10, max_size=10))
def test_two_ranks(drawn: list[Spread]) -> None:
    """A world takes half a second, so it is for many plans."""
    expected = [fuzz.train(spread.plan, KERNELS) for spread in drawn]
    for rank, found in enumerate(world.run(2, _train, drawn)):
        for spread, got, wanted in zip(drawn, found, expected, strict=True):
            for step, (one, other) in enumerate(zip(got, wanted, strict=True)):
                engine.assert_same(one, other, f"rank {rank}, step {step}, {spread}")


def _train(rank: int, drawn: list[Spread]) -> list[list[engine.Outcome]]:
    mesh = init_device_mesh("cpu", (2,))
    return [_trained(spread, mesh) for spread in drawn]


def _trained(spread: Spread, mesh: DeviceMesh) -> list[engine.Outcome]:
    def placed(tensor: Tensor, where: int | str | None) -> Tensor:
        if where is None:
            return tensor
        placement = Replicate() if where == "all" else Shard(int(where))
        return distribute_tensor(tensor, mesh, [placement], src_data_rank=None)

    tensors = fuzz.Tensors(spread.plan)
    ahead = iter(spread.placements)
    groups, params = tensors.groups(lambda weight: nn.Parameter(placed(weight.clone(), next(ahead))))
    tensors.gradients = [
        [None if g is None else placed(g, where) for g, where in zip(gradients, spread.placements, strict=True)]
        for gradients in tensors.gradients
    ]
    with engine.active(KERNELS), torch.no_grad():
        return [
            {name: whole(tensor) for name, tensor in engine.snapshot(optimizer).items()}
            for optimizer in fuzz.plain(spread.plan, tensors, groups, params)
        ]
