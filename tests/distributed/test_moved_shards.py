"""Shards that are on the CPU, of a mesh of accelerators, as FSDP2's CPUOffloadPolicy leaves them: everything stays there."""

from __future__ import annotations

import torch
from torch import nn

from regkernels import optim
from tests.distributed import world
from tests.distributed.simulated import mesh


def devices(_: int) -> set[str]:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    with mesh(1):
        accelerators = DeviceMesh("cuda", [0], _init_backend=False, _rank=0)
        own = torch.ones(4, 3, dtype=torch.bfloat16)
        spec = DTensorSpec(accelerators, (Shard(0),), tensor_meta=TensorMeta(own.shape, own.stride(), own.dtype))
        param = nn.Parameter(DTensor(own, spec, requires_grad=False))
        param.grad = DTensor(torch.ones_like(own), spec, requires_grad=False)
        optimizer = optim.AdamW([param], lr=0.1, param_rounding="master")
        optimizer.step()
        states = [state for name, state in optimizer.state[param].items() if name != "step"]
        assert len(states) == 3
        assert all(isinstance(state, DTensor) and state.dtype == torch.float32 for state in states)
        return {str(state.to_local().device) for state in states}


def test_states_stay_on_the_cpu() -> None:
    assert world.run(1, devices) == [{"cpu"}]
