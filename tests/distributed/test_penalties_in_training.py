"""A penalty in the loss of a model that FSDP and tensor parallelism have spread: training as in one process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

import regkernels as rk
from tests.distributed import world


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.norm, self.up, self.down, self.head = nn.LayerNorm(6), nn.Linear(6, 12), nn.Linear(12, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.down(torch.tanh(self.up(self.norm(x)))))


def _penalty(params: nn.Module | Iterable[Tensor]) -> Tensor:
    params = params if isinstance(params, nn.Module) else list(params)
    groups = rk.group_l1_penalty(params, 0.03) + rk.group_l1_penalty(params, 0.03, dim="tensor")
    return rk.elastic_net_penalty(params, 0.01, 0.02) + rk.mcp_penalty(params, 0.02) + groups


def _train(model: nn.Module, x: Tensor, y: Tensor, order: str, params: list[Tensor] | None) -> None:
    """``order``: what is computed when; ``params``: in the place of the model."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        if order == "before":
            penalty = _penalty(params or model)
            (nn.functional.mse_loss(model(x), y) + penalty).backward()
        elif order == "after":
            (nn.functional.mse_loss(model(x), y) + _penalty(params or model)).backward()
        else:
            nn.functional.mse_loss(model(x), y).backward()
            _penalty(params or model).backward()
        optimizer.step()


def _data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(12, 4, 6, generator=generator), torch.randn(12, 4, 4, generator=generator)


# Of layers: the root keeps its parameters gathered from the forward to the backward pass; others do not.
KINDS = ["fsdp, root", "fsdp, layers", "hsdp", "tensor parallel", "fsdp and tensor parallel"]
ORDERS = ["before", "after", "apart"]


def _spread(model: Net, kind: str, meshes: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Spreads the model, and returns this rank's part of the data."""
    x, y = _data()
    if kind == "fsdp, root":
        fully_shard(model)
        mesh = meshes["all"]
    elif kind == "tensor parallel" or kind == "fsdp and tensor parallel":
        mesh = meshes["all"] if kind == "tensor parallel" else meshes["two"]["inner"]
        plan = {
            "norm": SequenceParallel(),
            "up": ColwiseParallel(input_layouts=Shard(1)),
            "down": RowwiseParallel(output_layouts=Shard(1)),
            "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
        }
        parallelize_module(model, mesh, plan)
        x = x.chunk(mesh.size(), 1)[mesh.get_local_rank()]
        if kind == "tensor parallel":
            return x, y
        mesh = meshes["two"]["outer"]
        for layer in (*model.children(), model):
            fully_shard(layer, mesh=mesh)
    else:
        mesh = meshes["all"] if kind == "fsdp, layers" else meshes["two"]
        for layer in (model.up, model.down, model):
            fully_shard(layer, mesh=mesh)
    part = torch.distributed.get_rank() if kind != "fsdp and tensor parallel" else mesh.get_local_rank()
    parts = mesh.size()
    return x.chunk(parts)[part], y.chunk(parts)[part]


def _on_rank(rank: int) -> dict[Any, list[Tensor]]:
    two = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    meshes = {"all": init_device_mesh("cpu", (4,), mesh_dim_names=("all",)), "two": two}
    found = {}
    for kind in KINDS:
        for order in ORDERS:
            for listed in (False, True):
                model = Net()
                x, y = _spread(model, kind, meshes)
                _train(model, x, y, order, list(model.parameters()) if listed else None)
                weights = [param.detach() for param in model.parameters()]
                found[kind, order, listed] = [w.full_tensor() if isinstance(w, DTensor) else w for w in weights]
    return found


@pytest.fixture(scope="module")
def trained() -> list[dict[Any, list[Tensor]]]:
    return world.run(4, _on_rank)


@pytest.mark.parametrize("listed", [False, True], ids=["model", "list of parameters"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", KINDS)
def test_training_is_that_of_one_process(trained: Any, kind: str, order: str, listed: bool) -> None:
    expected = Net()
    _train(expected, *_data(), order, None)
    for found in trained:
        for got, wanted in zip(found[kind, order, listed], expected.parameters(), strict=True):
            torch.testing.assert_close(got, wanted.detach(), rtol=1e-5, atol=1e-6)
