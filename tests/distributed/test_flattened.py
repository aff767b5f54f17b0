"""Parameters that FullyShardedDataParallel flattens, which have lost their dimensions; and those of fully_shard, which keep them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

import regkernels
from regkernels import optim
from tests.distributed.simulated import mesh, spread

BY_GROUPS: list[dict[str, Any]] = [{"group_l1": 0.1}, {"group_l1": 0.1, "group_dim": "tensor"}, {"max_norm": 1.0}]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))


@pytest.fixture(params=[False, True], ids=["flat parameters", "their views"])
def wrapped(request: pytest.FixtureRequest) -> Iterator[FullyShardedDataParallel]:
    with mesh(2):
        yield FullyShardedDataParallel(network(), use_orig_params=request.param, device_id=torch.device("cpu"))


def test_what_only_dimensions_could_tell_is_refused(wrapped: FullyShardedDataParallel) -> None:
    with pytest.raises(
        ValueError, match=r"flattened by FullyShardedDataParallel.*before the model is wrapped.*fully_shard"
    ):
        regkernels.param_groups(wrapped, weight_decay=0.1)
    chosen, _ = regkernels.param_groups(wrapped, l1=0.1, regularise=lambda name, p: "norm" not in name)
    assert chosen["params"], "whoever goes by names may choose"


@pytest.mark.parametrize("penalty", BY_GROUPS, ids=str)
def test_groups_are_refused(wrapped: FullyShardedDataParallel, penalty: dict[str, Any]) -> None:
    pattern = f"parameter 0 of param group {{}} was flattened by Fully.*{next(iter(penalty))} would take each element"
    with pytest.raises(ValueError, match=pattern.format(0)):
        optim.Adam(wrapped.parameters(), **penalty)
    optimizer = optim.Adam([nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match=pattern.format(1)):
        optimizer.add_param_group({"params": list(wrapped.parameters()), **penalty})
    assert len(optimizer.param_groups) == 1
    optim.Adam(wrapped.parameters(), l1=0.1)  # element by element it is what it was


def test_the_penalty_by_groups_is_refused_in_the_loss(wrapped: FullyShardedDataParallel) -> None:
    with pytest.raises(ValueError, match=r"was flattened by Fully.*group_l1_penalty would take each element"):
        regkernels.group_l1_penalty(wrapped, 0.1)


def test_groups_made_before_the_model_is_wrapped() -> None:
    with mesh(2):
        model = network()
        elementwise = optim.SGD(regkernels.param_groups(model, l1=0.5), lr=0.1)
        by_rows = optim.SGD(regkernels.param_groups(model, group_l1=0.5), lr=0.1)
        wrapped = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
        weight, *others = wrapped.parameters()
        before = weight.detach().clone()
        for param in (weight, *others):
            param.grad = torch.zeros_like(param)
        assert weight.dim() == 1
        with pytest.raises(ValueError, match="group_l1 would take each element"):
            by_rows.step()
        assert torch.equal(weight, before)
        elementwise.step()
        torch.testing.assert_close(weight.detach(), regkernels.prox.soft_threshold(before, 0.05))


def test_dtensors_keep_their_dimensions() -> None:
    with mesh(2) as of_ranks:
        model = network()
        for layer in model:
            for name, param in list(layer.named_parameters()):
                setattr(layer, name, spread(param.detach(), of_ranks, torch.distributed.tensor.Shard(0)))
        groups = regkernels.param_groups(model, group_l1=0.1)
        assert [len(group["params"]) for group in groups] == [1, 3] and groups[0]["params"][0].shape == (6, 4)
        optim.SGD(groups, lr=0.1)
