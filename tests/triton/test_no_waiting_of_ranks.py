"""The host waits for no device in a step of parameters that are spread over ranks, and once where groups are, as simulated devices see it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed.tensor import DTensor, Replicate, Shard, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

import regkernels
from tests.support.simulated import Simulation, devices

DEVICE = torch.device("cuda", 1)
EVERYTHING = {"stats": True, "max_grad_norm": 1.0, "skip_nonfinite": True}
PLACES: dict[str, Any] = {
    "all": ((4,), [Shard(0)]),
    "two dimensions": ((2, 2), [Shard(0), Shard(1)]),
    "replicated": ((2, 2), [Replicate(), Shard(0)]),
}


class Arrived:
    """A message of one rank, which is there at once."""

    def wait(self) -> None: ...


@pytest.fixture(scope="module")
def simulation() -> Iterator[Simulation]:
    """Once: DTensor's caches hold on to the first mesh, whose groups would be gone."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    try:
        with pytest.MonkeyPatch.context() as patched, devices(2) as simulated, torch.cuda.device(0):
            patched.setattr(distributed, "all_reduce", lambda *args, **more: Arrived())
            yield simulated
    finally:
        distributed.destroy_process_group()


@pytest.fixture(scope="module")
def meshes(simulation: Simulation) -> dict[tuple[int, ...], Any]:
    return {sizes: init_device_mesh("cuda", sizes) for sizes in ((4,), (2, 2))}


def parameters(mesh: Any, placements: list[Any]) -> list[nn.Parameter]:
    own = [torch.zeros(size, 7, device=DEVICE) for size in (5, 6)]
    spread = [nn.Parameter(DTensor.from_local(tensor, mesh, placements, run_check=False)) for tensor in own]
    return [*spread, nn.Parameter(torch.zeros(3, 4, device=DEVICE))]


def waits_of_steps(simulation: Simulation, params: list[nn.Parameter], **options: Any) -> list[list[str]]:
    optimizer = regkernels.optim.AdamW(params, weight_decay=0.1, **options)
    found = []
    for _ in range(4):
        for param in params:
            param.grad = torch.zeros_like(param)
        simulation.waits.clear()
        optimizer.step()
        getattr(optimizer, "stats", None)
        found.append(list(simulation.waits))
    return found


@pytest.mark.parametrize("more", [{}, {"stats": True}, EVERYTHING], ids=str)
@pytest.mark.parametrize("place", PLACES)
def test_sums_over_ranks(place: str, more: dict[str, Any], simulation: Simulation, meshes: Any) -> None:
    sizes, placements = PLACES[place]
    params = parameters(meshes[sizes], placements)
    assert waits_of_steps(simulation, params, l1=1e-3, **more) == [[]] * 4


def test_sums_over_a_process_group(simulation: Simulation, meshes: Any) -> None:
    params = [nn.Parameter(torch.zeros(3, 4, device=DEVICE))]
    group = distributed.group.WORLD
    assert waits_of_steps(simulation, params, l1=1e-3, process_group=group, **EVERYTHING) == [[]] * 4


@pytest.mark.parametrize("place", PLACES)
def test_groups_over_ranks(place: str, simulation: Simulation, meshes: Any) -> None:
    """To know who has gradients; and once more for what scales them, where only the device knows it."""
    sizes, placements = PLACES[place]
    params = parameters(meshes[sizes], placements)
    by_rows = {"group_l1": 1e-3, "group_dim": 1}
    assert waits_of_steps(simulation, params, **by_rows) == [["tolist"]] * 4
    assert waits_of_steps(simulation, params, **by_rows, **EVERYTHING) == [["tolist"] * 2] * 4


@pytest.mark.parametrize("others_first", [False, True])
@pytest.mark.parametrize("more", [{"stats": True}, EVERYTHING], ids=str)
def test_fingerprints_are_read_when_they_have_arrived(
    more: dict[str, Any], others_first: bool, simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the stream of the parameters' device, which is not the current one, and in memory of the host, whatever is the default."""
    monkeypatch.setattr(simulation, "late", True)
    monkeypatch.setattr(simulation, "_others_first", others_first)
    params = [nn.Parameter(torch.zeros(3, 4, device=DEVICE))]
    with torch.device(DEVICE):
        waits = waits_of_steps(simulation, params, l1=1e-3, process_group=distributed.group.WORLD, **more)
    simulation.synchronize()
    assert waits == [[]] * 4
