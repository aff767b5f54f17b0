"""Ranks with other parameters: stages of a pipeline, each sharded over ranks of its own. And torch's scaler on shards."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.amp import GradScaler
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from regkernels import optim
from tests.distributed import world
from tests.distributed.test_norms_and_stats import counted
from tests.distributed.topologies import whole

SHAPES = ((5, 4), (3,), (2, 2))
PLACEMENTS = ([Shard(0)], [Shard(0)], [Replicate()])
OPTIONS: dict[str, dict[str, Any]] = {
    "clipped": {"max_grad_norm": 0.7},
    "stats": {"stats": True},
    "clipped, with stats": {"max_grad_norm": 0.7, "stats": True},
    "NaN in the other stage": {"skip_nonfinite": True, "stats": True},
    "elementwise": {},
}
STEPS = 3


def _gradients(name: str, stage: int, step: int) -> list[Tensor]:
    gradients = whole(SHAPES, seed=10 * step + stage)
    if name.startswith("NaN") and stage == 1 and step == 2:
        gradients[1][0] = math.nan
    return gradients


def _stages(rank: int) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("stage", "shard"))
    stage, own = mesh.get_local_rank("stage"), mesh["shard"]
    found = {}
    for name, options in OPTIONS.items():
        tensors = whole(SHAPES, seed=stage)
        params = [
            nn.Parameter(distribute_tensor(tensor, own, how, src_data_rank=None))
            for tensor, how in zip(tensors, PLACEMENTS, strict=True)
        ]
        plain = nn.Parameter(torch.full((3,), 0.5 + stage))
        optimizer = optim.AdamW([*params, plain], lr=0.01, process_group=mesh.get_group("stage"), **options)
        messages, stats = [], []
        for step in range(STEPS):
            for param, how, gradient in zip(params, PLACEMENTS, _gradients(name, stage, step), strict=True):
                param.grad = distribute_tensor(gradient, own, how, src_data_rank=None)
            plain.grad = torch.full((3,), 0.25 + step)
            with counted() as talk:
                optimizer.step()
                sums = getattr(optimizer, "stats", None)
                stats.append({} if sums is None else sums._asdict())
            messages.append(talk[0])
        weights = [param.detach().full_tensor() for param in params] + [plain.detach()]  # type: ignore[attr-defined]
        found[name] = stage, weights, messages, stats
        distributed.barrier()
    return found


def _alone(name: str) -> tuple[list[list[Tensor]], list[dict[str, Tensor]]]:
    stages = [[nn.Parameter(tensor) for tensor in whole(SHAPES, seed=stage)] for stage in (0, 1)]
    for stage, params in enumerate(stages):
        params.append(nn.Parameter(torch.full((3,), 0.5 + stage)))
    optimizer = optim.AdamW([param for params in stages for param in params], lr=0.01, **OPTIONS[name])
    stats = []
    for step in range(STEPS):
        for stage, params in enumerate(stages):
            gradients = [*_gradients(name, stage, step), torch.full((3,), 0.25 + step)]
            for param, gradient in zip(params, gradients, strict=True):
                param.grad = gradient
        optimizer.step()
        sums = getattr(optimizer, "stats", None)
        stats.append({} if sums is None else sums._asdict())
    return [[param.detach() for param in params] for params in stages], stats


@pytest.fixture(scope="module")
def stages() -> list[dict[str, Any]]:
    return world.run(4, _stages)


@pytest.mark.parametrize("name", OPTIONS)
def test_stages_of_a_pipeline_have_one_norm(stages: list[dict[str, Any]], name: str) -> None:
    weights, expected = _alone(name)
    for stage, own, messages, stats in (of_rank[name] for of_rank in stages):
        for one, other in zip(own, weights[stage], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=0)
        for one, other in zip(stats, expected, strict=True):
            assert list(one) == list(other)
            for key in other:
                torch.testing.assert_close(one[key], other[key], rtol=1e-6, atol=0, equal_nan=True)
        asked = ("max_grad_norm" in OPTIONS[name] or "skip_nonfinite" in OPTIONS[name]) + ("stats" in OPTIONS[name])
        assert messages[1:] == [asked * 2] * (STEPS - 1), "one for each dimension that something is spread over"
    assert len({tuple(str(step[key].tolist()) for step in of_rank[name][3] for key in step) for of_rank in stages}) == 1


def _scaled(rank: int, amp_scaling: bool) -> tuple[list[Tensor], list[float]]:
    """The second step overflows in one element, which one rank has."""
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),)) if distributed.is_initialized() else None

    def spread(tensor: Tensor) -> Any:
        return tensor if mesh is None else distribute_tensor(tensor, mesh, [Shard(0)], src_data_rank=None)

    params = [nn.Parameter(spread(tensor)) for tensor in whole(SHAPES, seed=0)]
    optimizer = optim.AdamW(params, lr=0.01, amp_scaling=amp_scaling)
    scaler, scales = GradScaler("cpu", init_scale=2.0**10, growth_interval=2), []
    for step in range(5):
        scaler.scale(torch.zeros(()))
        gradients = [tensor * scaler.get_scale() for tensor in whole(SHAPES, seed=1 + step)]
        if step == 1:
            gradients[0][-1, -1] = math.inf
        for param, gradient in zip(params, gradients, strict=True):
            param.grad = spread(gradient)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    tensors = [tensor for param in params for tensor in (param.detach(), *optimizer.state[param].values())]
    return [tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for tensor in tensors], scales


@pytest.mark.parametrize("amp_scaling", [False, True])
def test_an_overflow_on_one_rank_leaves_the_step_out_on_all(amp_scaling: bool) -> None:
    expected, scales = _scaled(0, amp_scaling)
    for found, of_rank in world.run(2, _scaled, amp_scaling):
        assert of_rank == scales and scales[1] < scales[0]
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
