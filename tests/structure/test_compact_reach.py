"""What forward of a module that cannot be traced names of the insides of its parts stays as it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import regkernels as rk
from tests.structure.modules import Calling, zeroed

pytestmark = pytest.mark.usefixtures("one_thread")


class Hidden(nn.Module):
    """An MLP that can be traced."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 6), nn.Linear(6, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


class Around(nn.Module):
    """A forward that cannot be traced, and uses its part as it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.mlps = nn.ModuleList([Hidden(), Hidden()])

    def forward(self, x: Tensor) -> Tensor:
        for mlp in self.mlps:
            x = x + mlp(x) if x.sum() < 1e9 else x
        return x


class Reaching(Around):
    def forward(self, x: Tensor) -> Tensor:
        for mlp in self.mlps:
            x = x + mlp(x) + mlp.up(x).sum() if x.sum() < 1e9 else x
        return x


class ReachingByHelper(Around):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.sum() < 1e9 else x

    def inner(self, x: Tensor) -> Tensor:
        return self.mlps[0](x) + getattr(self.mlps[1], "up")(x).sum()  # noqa: B009


class Scaled(nn.Module):
    """Reads a scale of a part that is traced by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Calling(lambda m, x: m.last(m.first(x) * m.gamma))
        self.part.gamma = nn.Parameter(torch.rand(6) + 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x) + self.part.gamma.sum() if x.sum() < 1e9 else x


def assert_same(model: nn.Module, compacted: rk.structure.Compacted, x: Tensor) -> None:
    torch.testing.assert_close(compacted.model(x), model(x), rtol=0, atol=1e-12)


def test_a_part_that_is_called_as_a_whole() -> None:
    model = zeroed(Around())
    compacted = rk.compact(model)
    assert [mlp.up.out_features for mlp in compacted.model.mlps] == [5, 5]
    assert_same(model, compacted, torch.randn(5, 4).double())


@pytest.mark.parametrize("make", [Reaching, ReachingByHelper, Scaled])
def test_parts_that_are_reached_into(make: Callable[[], nn.Module]) -> None:
    model, x = zeroed(make()), torch.randn(5, 4).double()
    compacted = rk.compact(model)
    assert_same(model, compacted, x)
    assert any("is used from outside of the part" in kept.reason for kept in compacted.kept)


def test_a_scale_that_is_read_twice() -> None:
    model = Calling(lambda m, x: m.last(m.first(x) * m.gamma) + m.gamma.sum())
    model.gamma = nn.Parameter(torch.rand(6) + 1)
    compacted = rk.compact(zeroed(model))
    assert compacted.model.gamma.shape == (6,) and not compacted.removed
    assert_same(model, compacted, torch.randn(5, 4).double())
