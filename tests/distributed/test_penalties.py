"""Penalties of parameters that are spread over ranks: those of the whole parameters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

import regkernels as rk
from tests.distributed import world

S = 0.37
Params = list[Tensor]


def _weighted(params: Params) -> Tensor:
    return rk.l1_penalty(params, S, [param.detach() ** 2 for param in params])


def _learned(penalty: Callable[..., Tensor]) -> Callable[[Params], Tensor]:
    return lambda params: penalty(params, torch.tensor(S))


ELEMENTS: dict[str, Callable[[Params], Tensor]] = {
    "l1": lambda p: rk.l1_penalty(p, S),
    "weighted l1": _weighted,
    "l2": lambda p: rk.l2_penalty(p, S),
    "elastic net": lambda p: rk.elastic_net_penalty(p, S, 0.2),
    "elastic net of tensors": lambda p: rk.elastic_net_penalty(p, torch.tensor(S), torch.tensor(0.2)),
    "l0": lambda p: rk.l0_penalty(p, S),
    "l_half": lambda p: rk.l_half_penalty(p, S),
    "mcp": lambda p: rk.mcp_penalty(p, S),
    "mcp of a tensor": _learned(rk.mcp_penalty),
    "scad": lambda p: rk.scad_penalty(p, S),
    "log_sum": lambda p: rk.log_sum_penalty(p, S),
    "huber": lambda p: rk.huber_penalty(p, S),
}
GROUPS: dict[str, Callable[[Params], Tensor]] = {
    "rows": lambda p: rk.group_l1_penalty(p, S),
    "pairs of rows": lambda p: rk.group_l1_penalty(p, S, size=2, weight="ones"),
    "columns": lambda p: rk.group_l1_penalty(p, torch.tensor(S), dim=1),
    "triples of columns": lambda p: rk.group_l1_penalty(p, S, dim=1, size=3),
    "tensors": lambda p: rk.group_l1_penalty(p, S, dim="tensor"),
}
PENALTIES = ELEMENTS | GROUPS
DTYPES = (torch.float64, torch.float32, torch.bfloat16)
# Rows and columns that 2, 3 and 4 ranks share unevenly, some of them getting nothing; all are divided by 2 and 3.
SHAPES = [(6, 9), (2, 12), (10, 3), (8, 6, 2)]


class Layout(NamedTuple):
    mesh: tuple[int, ...]
    placements: list[tuple[Placement, ...] | None]
    """One after the other for `SHAPES`; None: a plain tensor."""
    messages: int
    """Groups of ranks that anything is cut over."""


LAYOUTS = {
    "rows over 3": Layout((3,), [(Shard(0),)] * 4, 1),
    "columns over 3": Layout((3,), [(Shard(1),)] * 4, 1),
    "replicated on 3": Layout((3,), [(Replicate(),)] * 4, 0),
    "of all kinds on 3": Layout((3,), [(Shard(0),), None, (Replicate(),), (Shard(1),)], 1),
    "rows over 4": Layout((4,), [(Shard(0),)] * 4, 1),
    "replicated rows": Layout((2, 2), [(Replicate(), Shard(0))] * 4, 1),
    "rows and columns": Layout((2, 2), [(Shard(0), Shard(1))] * 4, 2),
    "rows twice": Layout((2, 2), [(Shard(0), Shard(0)), (_StridedShard(0, split_factor=2), Shard(0))] * 2, 2),
    "of all kinds on 2 x 2": Layout(
        (2, 2), [(Shard(1), Replicate()), (Replicate(), Shard(0)), (Shard(0), Shard(0)), None], 2
    ),
    "over one rank": Layout((4, 1), [(Replicate(), Shard(0))] * 4, 0),
}
TWICE = ["of all kinds on 3", "rows and columns", "rows twice"]


def _dtypes(layout: str) -> tuple[torch.dtype, ...]:
    return DTYPES if layout.startswith(("of all kinds", "rows over")) else DTYPES[:1]


def _full(dtype: torch.dtype) -> Params:
    generator = torch.Generator().manual_seed(3)
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]
    tensors[0][1] = 0.0
    return tensors


class Outcome(NamedTuple):
    value: Tensor
    gradients: list[tuple[Tensor, Tensor]]
    """What the rank has of each, and what it should have."""
    alike: bool
    forward: int
    backward: int


class Messages:
    """Counts what is sent in the place of `torch.distributed.all_reduce`."""

    def __init__(self) -> None:
        self.sent, self._send = 0, distributed.all_reduce
        distributed.all_reduce = self  # type: ignore[assignment]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.sent += 1
        return self._send(*args, **kwargs)


def _params(mesh: DeviceMesh, layout: Layout, dtype: torch.dtype) -> Params:
    return [
        nn.Parameter(whole if at is None else distribute_tensor(whole, mesh, at, src_data_rank=None))
        for whole, at in zip(_full(dtype), layout.placements, strict=True)
    ]


def _part(tensor: Tensor, like: Any) -> Tensor:
    """Of a whole tensor, without a message."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None).to_local()


def _compared(penalty: str, params: Params, messages: Messages) -> Outcome:
    before = messages.sent
    value = PENALTIES[penalty](params)
    forward = messages.sent
    (0.7 * value).backward()
    backward = messages.sent
    whole = [nn.Parameter(tensor) for tensor in _full(params[0].dtype)]
    (0.7 * PENALTIES[penalty](whole)).backward()
    spread = [param for param in params if isinstance(param, DTensor)]
    return Outcome(
        value.detach(),
        [(_own(param.grad), _part(wanted.grad, param)) for param, wanted in zip(params, whole, strict=True)],
        all(param.grad.placements == param.placements and param.grad.shape == param.shape for param in spread),
        forward - before,
        backward - forward,
    )


def _own(tensor: Any) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _on_rank(rank: int, size: int) -> dict[Any, Any]:
    messages, found = Messages(), {}
    layouts = {name: layout for name, layout in LAYOUTS.items() if math.prod(layout.mesh) == size}
    meshes = {shape: init_device_mesh("cpu", shape) for shape in sorted({layout.mesh for layout in layouts.values()})}
    for name, layout in layouts.items():
        mesh = meshes[layout.mesh]
        for dtype, penalty in itertools.product(_dtypes(name), PENALTIES):
            found[name, dtype, penalty] = _compared(penalty, _params(mesh, layout, dtype), messages)
        if name in TWICE:
            found[name] = {kind: _twice(CURVED[kind], _params(mesh, layout, torch.float64)) for kind in CURVED}
    found["twice"] = _of_memory_twice(meshes[size,])
    return found


def _of_memory_twice(mesh: DeviceMesh) -> list[Tensor]:
    """Of a tensor of which the last ranks have nothing, where no two tensors seem to be the same memory."""
    param = nn.Parameter(distribute_tensor(_full(torch.float64)[1], mesh, [Shard(0)], src_data_rank=None))
    params = [param, param, nn.Parameter(param.detach())]
    value = rk.l1_penalty(params, S) + rk.group_l1_penalty(params, S, dim=1)
    value.backward()
    return [value.detach(), param.grad.full_tensor()]


@pytest.fixture(scope="module")
def outcomes() -> dict[Any, list[Any]]:
    """By case, what each rank has found."""
    results = world.run(3, _on_rank, 3), world.run(4, _on_rank, 4)
    return {case: [result[case] for result in ranks] for ranks in results for case in ranks[0]}


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_values_and_gradients_are_those_of_whole_tensors(outcomes: Any, name: str, penalty: str) -> None:
    for dtype in _dtypes(name):
        expected = PENALTIES[penalty](_full(dtype))
        first = outcomes[name, dtype, penalty][0]
        exact = dtype == torch.float64
        torch.testing.assert_close(first.value, expected, rtol=1e-12 if exact else 1e-6, atol=0)
        for outcome in outcomes[name, dtype, penalty]:
            assert torch.equal(outcome.value, first.value), "the same bits on every rank"
            assert outcome.alike, "gradients are spread as parameters are"
            assert (outcome.forward, outcome.backward) == (LAYOUTS[name].messages, 0)
            for got, wanted in outcome.gradients:
                if penalty in GROUPS:  # whose norms are sums
                    rtol = 1e-12 if exact else 2 * torch.finfo(dtype).eps
                    torch.testing.assert_close(got, wanted, rtol=rtol, atol=0)
                else:
                    assert torch.equal(got, wanted)


def test_memory_that_appears_twice_counts_once(outcomes: Any) -> None:
    w = nn.Parameter(_full(torch.float64)[1])
    value = rk.l1_penalty(w, S) + rk.group_l1_penalty(w, S, dim=1)
    value.backward()
    for outcome in outcomes["twice"]:
        torch.testing.assert_close(outcome, [value.detach(), w.grad], rtol=1e-12, atol=0)


# --- gradients of gradients, and of strengths ---

CURVED: dict[str, Callable[[Params, Tensor], Tensor]] = {
    "elastic net": lambda p, s: rk.elastic_net_penalty(p, s, s * s),
    "weighted l1": lambda p, s: rk.l1_penalty(p, s, [param.detach() ** 2 for param in p]),
    "scad": rk.scad_penalty,
    "log_sum": rk.log_sum_penalty,
    "rows": rk.group_l1_penalty,
    "columns": lambda p, s: rk.group_l1_penalty(p, s, dim=1),
}


def _twice(penalty: Callable[[Params, Tensor], Tensor], params: Params) -> list[Tensor]:
    """Gradients of a square, and those of a function of these."""
    strength = torch.tensor(S, dtype=torch.float64, requires_grad=True)
    inputs = [*params, strength]
    first = torch.autograd.grad(penalty(params, strength) ** 2, inputs, create_graph=True)
    cubes = [(g**3).sum() for g in first]
    total = sum(cube.full_tensor() if isinstance(cube, DTensor) else cube for cube in cubes)
    second = torch.autograd.grad(total, inputs)
    return [g.detach().full_tensor() if isinstance(g, DTensor) else g.detach() for g in (*first, *second)]


@pytest.mark.parametrize("penalty", CURVED)
@pytest.mark.parametrize("name", TWICE)
def test_second_derivatives_and_learned_strengths(outcomes: Any, name: str, penalty: str) -> None:
    expected = _twice(CURVED[penalty], [tensor.requires_grad_() for tensor in _full(torch.float64)])
    for outcome in outcomes[name]:
        for got, wanted in zip(outcome[penalty], expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-13)
