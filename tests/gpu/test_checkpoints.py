"""Files of what is on a device: through the host and back without a bit lost, and no larger than elsewhere."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

import regkernels
from regkernels.table import segments
from tests.gpu.training import RULES, Training, assert_same_training
from tests.optim.checkpoint.cases import through_a_file

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("flat", [False, True], ids=["", "flat"])
@pytest.mark.parametrize("where", ["cpu", None], ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_resuming_from_a_file(rule: str, where: str | None, flat: bool, device: torch.device) -> None:
    straight, stopped, resumed = (Training(rule, device) for _ in range(3))
    if flat:
        regkernels.FlatParameters(resumed.params)
    for training in (straight, stopped):
        training.whole()
        training.whole()
    weights, states = through_a_file([stopped.params, stopped.optimizer.state_dict()], map_location=where)
    with torch.no_grad():
        for param, weight in zip(resumed.params, weights, strict=True):
            param.copy_(weight)
    resumed.optimizer.load_state_dict(states)
    for training in (straight, resumed):
        training.whole()
        training.whole()
    assert_same_training(resumed, straight)


def _size(value: Any) -> int:
    file = io.BytesIO()
    torch.save(value, file)
    return file.tell()


def test_flat_parameters_are_storages_of_their_own(device: torch.device) -> None:
    training = Training("adam", device)
    sizes = [_size(param) for param in training.params]
    flat = regkernels.FlatParameters(training.params)
    training.optimizer.zero_grad()
    training.backward()
    training.optimizer.step()
    for param, size in zip(training.params, sizes, strict=True):
        assert param.device == flat.weights[0].device
        assert param.untyped_storage().nbytes() == param.nbytes and _size(param) == size
    (plan,) = training.optimizer._stepper.plans
    assert len(plan.active.segments) == 2, "one per dtype"
    assert plan.active.segments[:, segments.NUMEL].sum() == sum(param.numel() for param in training.params)
