"""Compaction and the sparsity report of models on a device."""

from __future__ import annotations

import copy

import pytest
import torch

import regkernels as rk
from tests.support.networks import NETWORKS, batch, with_zeros

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", ["VGG", "ResNet", "U-Net", "MobileNet", "embedding"])
def test_a_model_on_a_device(name: str, device: torch.device) -> None:
    model = with_zeros(NETWORKS[name][0](), 1)
    there, x = copy.deepcopy(model).to(device), batch(name).to(device)
    here, compacted = rk.compact(model), rk.compact(there, x)
    assert all(tensor.device == x.device for tensor in compacted.model.state_dict().values())
    assert compacted[1:] == here[1:] and len(compacted.removed) > 0
    for training in (False, True):
        old, new = (copy.deepcopy(network).train(training)(x.clone()) for network in (there, compacted.model))
        torch.testing.assert_close(new, old, rtol=1e-10, atol=1e-10)
    counted, expected = rk.sparsity_report(there), rk.sparsity_report(model)
    for row, other in zip((*counted.rows, counted.totals), (*expected.rows, expected.totals), strict=True):
        assert row[:8] == other[:8] and row[8:10] == pytest.approx(other[8:10], rel=1e-12)
