"""What a forward that cannot be traced indexes, walks over or hands on stays, as do constants that it computes from sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

import regkernels as rk
from tests.structure.modules import Calling, zeroed

pytestmark = pytest.mark.usefixtures("one_thread")


class Holding(nn.Module):
    """Has a chain of layers, and a list of one."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 3))])

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x) if x.sum() < 1e9 else x

    def used(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Indexed(Holding):
    def used(self, x: Tensor) -> Tensor:
        return self.net(x) + self.net[0](x).mean()


class Sliced(Holding):
    def used(self, x: Tensor) -> Tensor:
        return self.net(x) + self.net[:2](x).mean()


class Walked(Holding):
    def used(self, x: Tensor) -> Tensor:
        total = x.sum()
        for layer in self.net:
            x = layer(x)
            total = total + x.mean()
        return x + total


class Unpacked(Holding):
    def used(self, x: Tensor) -> Tensor:
        first, act, last = self.net
        hidden = act(first(x))
        return last(hidden) + hidden.mean()


class ElementIndexed(Holding):
    def used(self, x: Tensor) -> Tensor:
        x = self.net(x)
        for block in self.blocks:
            x = block(x) + block[0](x).mean()
        return x


class Read(Holding):
    def used(self, x: Tensor) -> Tensor:
        return self.net(x) + parameters_to_vector(self.net.parameters()).mean()


class ReadByItself(Holding):
    def used(self, x: Tensor) -> Tensor:
        return self.net(x) + sum(param.mean() for param in self.parameters())


class Looked(Holding):
    def used(self, x: Tensor) -> Tensor:
        return self.net(x) + self.get_submodule("net.0")(x).mean()


class HandedOn(Holding):
    def used(self, x: Tensor) -> Tensor:
        return through(self, x)


def through(module: Holding, x: Tensor) -> Tensor:
    return module.net(x) + module.net[0](x).mean()


KINDS = [Indexed, Sliced, Walked, Unpacked, ElementIndexed, Read, ReadByItself, Looked, HandedOn]


@pytest.mark.parametrize("kind", KINDS)
def test_parts_that_are_taken_apart_stay(kind: type[Holding]) -> None:
    model, x = zeroed(kind()), torch.randn(5, 4).double()
    for chain in (model.net, model.blocks[0]):
        nn.init.zeros_(chain[0].weight[:2].data)  # type: ignore[index]
        nn.init.zeros_(chain[0].bias[:2].data)  # type: ignore[index]
    compacted = rk.compact(model)
    torch.testing.assert_close(compacted.model(x), model(x), rtol=0, atol=1e-12)


def test_what_is_only_called_goes() -> None:
    class Called(Holding):
        def used(self, x: Tensor) -> Tensor:
            x = self.net(x) if self.net is not None else x
            for number, block in enumerate(self.blocks):
                x = block(x) + number
            return self.blocks[0](x)

    model, x = zeroed(Called()), torch.randn(5, 4).double()
    model.net[0].weight.data[:2], model.net[0].bias.data[:2] = 0, 0
    compacted = rk.compact(model)
    assert compacted.model.net[0].out_features < 6
    torch.testing.assert_close(compacted.model(x), model(x), rtol=0, atol=1e-12)


CONSTANTS: list[Callable[..., Tensor]] = [
    lambda m, y: y * torch.tensor(m.first.out_features**-0.5),
    lambda m, y: y + torch.arange(m.first.out_features).sum(),
    lambda m, y: y * torch.full((3,), 1 / m.last.in_features),
    lambda m, y: y + m.first.state_dict()["weight"].mean(),
]


@pytest.mark.parametrize("constant", CONSTANTS)
@pytest.mark.parametrize("in_training", [False, True])
def test_constants_that_follow_sizes_are_refused(constant: Callable[..., Tensor], in_training: bool) -> None:
    """They would be others in the smaller model, of which an example in evaluation says nothing where they are for training only."""
    model = zeroed(Calling(lambda m, x: _last(m, x, constant, in_training)))
    with pytest.raises(ValueError, match=r"forward depends on the sizes of layers.*_tensor_constant"):
        rk.compact(model, torch.randn(5, 4).double())


def _last(model: nn.Module, x: Tensor, constant: Callable[..., Tensor], in_training: bool) -> Tensor:
    y = model.last(model.first(x).relu())
    return constant(model, y) if model.training or not in_training else y


def test_sums_that_are_divided_by_another_number() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(nn.functional.avg_pool2d(self.first(x).relu(), 2, divisor_override=3))

    model, x = Pooled().double(), torch.randn(2, 2, 9, 9).double()
    model.first.weight.data[1], model.first.bias.data[1] = 0, 1
    torch.testing.assert_close(rk.compact(model).model(x), model(x), rtol=0, atol=1e-12)


def test_views_by_the_shape_of_another() -> None:
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.a(x).relu()
            return self.c(hidden) + self.d(self.b(x).view(hidden.shape))

    model, x = Viewed().double(), torch.randn(5, 4).double()
    model.a.weight.data[:2], model.a.bias.data[:2] = 0, 0
    torch.testing.assert_close(rk.compact(model).model(x), model(x), rtol=0, atol=1e-12)
