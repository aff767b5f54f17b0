"""Views whose sizes are asked of tensors with the same channels, as in squeeze-and-excitation, keep the channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regkernels as rk
from tests.structure.modules import Calling, zeroed

pytestmark = pytest.mark.usefixtures("one_thread")


def assert_same(model: nn.Module, compacted: rk.structure.Compacted, x: Tensor) -> None:
    torch.testing.assert_close(compacted.model(x), model(x), rtol=0, atol=1e-12)


class SqueezeExcite(nn.Module):
    def __init__(self, gate: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.squeeze, self.excite = nn.Linear(8, 4), nn.Linear(4, 8)
        self._gate = gate

    def scale(self, y: Tensor) -> Tensor:
        return self.excite(self.squeeze(y).relu()).sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return self._gate(self, x)


def viewed(m: SqueezeExcite, x: Tensor) -> Tensor:
    b, c, _, _ = x.size()
    return x * m.scale(m.pool(x).view(b, c)).view(b, c, 1, 1).expand_as(x)


GATES: list[Callable[[Any, Tensor], Tensor]] = [
    viewed,
    lambda m, x: x * m.scale(x.mean((2, 3)))[:, :, None, None],
    lambda m, x: x * m.scale(m.pool(x).flatten(1)).unsqueeze(-1).unsqueeze(-1),
]


@pytest.mark.parametrize("gate", GATES)
def test_squeeze_and_excite(gate: Callable[[Any, Tensor], Tensor]) -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), SqueezeExcite(gate), nn.Conv2d(8, 2, 3)).double()
    with torch.no_grad():
        model[0].weight[[1, 3]] = 0
        model[0].bias[[1, 3]] = -1
        model[2].squeeze.weight[0] = 0
    compacted = rk.compact(model)
    assert compacted.model[0].out_channels == compacted.model[2].excite.out_features == 6
    assert compacted.model[2].squeeze.out_features == 3
    assert_same(model, compacted, torch.randn(2, 1, 7, 7).double())


def test_places_behind_the_channels() -> None:
    def forward(m: Calling, x: Tensor) -> Tensor:
        y = m.first(x).relu()
        return m.last(y.view(y.size(0), y.size(1), -1).mean(-1))

    model = zeroed(Calling(forward, nn.Conv2d(1, 6, 3)))
    compacted = rk.compact(model)
    assert compacted.model.first.out_channels == 5
    assert_same(model, compacted, torch.randn(2, 1, 5, 5).double())


def test_samples_of_another_tensor() -> None:
    """As many channels do not make a view keep them, where its first size is the number of samples of something else."""

    def forward(m: Calling, x: Tensor) -> Tensor:
        y = m.first(x).relu()
        return m.last(y.view(m.second(torch.cat([x, x])).size(0), y.size(1), -1).mean(-1))

    model = zeroed(Calling(forward, nn.Conv2d(1, 6, 3), second=nn.Conv2d(1, 6, 3)))
    compacted = rk.compact(model)
    assert compacted.model.first.out_channels == 6
    assert_same(model, compacted, torch.randn(2, 1, 6, 6).double())
