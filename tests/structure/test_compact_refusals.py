"""What compaction refuses, and constants and arguments that it must not take as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import regkernels as rk
from tests.structure.modules import Branching, Calling, zeroed

pytestmark = pytest.mark.usefixtures("one_thread")


class Adding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 1e9 else x.add_(1)


CHANGES: list[Callable[[Calling, Tensor], Tensor]] = [
    lambda m, y: m.unknown(y),
    lambda m, y: y.detach().sub_(1),
    lambda m, y: F.hardtanh(y, 0.5, 1, True),
    lambda m, y: torch.relu_(y.flatten()),
]


@pytest.mark.parametrize("change", CHANGES)
def test_constants_changed_in_place(change: Callable[[Calling, Tensor], Tensor]) -> None:
    """The row of ``middle`` that reads nothing but a constant does not read the constant that it was."""

    def forward(m: Calling, x: Tensor) -> Tensor:
        y = m.first(x)
        change(m, y)
        return m.last(m.middle(y))

    model = Calling(forward, unknown=Adding(), middle=nn.Linear(6, 6))
    with torch.no_grad():
        model.first.weight[1] = 0
        model.first.bias[1] = -0.2
        model.middle.weight[0] = 0
        model.middle.weight[0, 1] = 1
    x = torch.randn(4, 4)
    compacted = rk.compact(model, x)
    torch.testing.assert_close(compacted.model(x), model(x))
    assert not compacted.removed


def test_other_arguments() -> None:
    class Arguments(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(
            self, *xs: Tensor, scale: float = 2.0, sizes: tuple[int, ...] = (1, 2), names: Any = ("a",), **more: Any
        ) -> Tensor:
            x = xs[0] if len(xs) == 1 else xs[0] + xs[1]
            y = self.first(x) * scale * sizes[1] if names and not more else x
            return self.last(y.relu())

    model, x = zeroed(Arguments()), torch.randn(5, 4).double()
    for examples in (x, (x, x)):
        assert rk.compact(model, examples).model.first.out_features == 5
    reason = rk.compact(model).kept[0].reason
    assert "Arguments cannot be traced by torch.fx (IndexError" in reason


class Sizes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) / self.first.out_features)


class Loop(Branching):
    def forward(self, x: Tensor) -> Tensor:
        while x.sum() > 0:
            x = self.inner(x)
        return x


class Hidden(nn.Module):
    """Parameters in a computation that torch.fx does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        self.kept = [self.first.weight]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x)) + self.kept[0].sum()


def replaced() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2))
    model.forward = lambda x: x
    return model


REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: [nn.Linear(2, 2)], TypeError, "model must be a torch.nn.Module, got list"),
    (lambda: nn.DataParallel(nn.Linear(2, 2)), TypeError, "pass model.module"),
    (lambda: torch.compile(nn.Linear(2, 2)), TypeError, "compile the result"),
    (replaced, TypeError, "has been replaced on the object"),
    (lambda: nn.Linear(2, 2, device="meta"), TypeError, "weight is on the meta device"),
    (lambda: nn.Sequential(nn.LazyLinear(2)), TypeError, "0.weight has no shape yet; run the model once"),
    (lambda: zeroed(Sizes()), ValueError, "forward depends on the sizes of layers"),
]


@pytest.mark.parametrize(("make", "error", "message"), REFUSED)
def test_refused(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        rk.compact(make())


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (Loop, "Loop cannot be traced by torch.fx (TraceError"),
        (Hidden, "it is held in kept, too, where torch does not know of it"),
    ],
)
def test_a_model_that_cannot_be_traced_keeps_what_goes_between_its_parts(
    make: Callable[[], nn.Module], why: str
) -> None:
    model = zeroed(make())
    compacted = rk.compact(model)
    assert compacted.parameters == compacted.parameters_before
    assert why in compacted.kept[0].reason


def test_outputs_that_differ_are_an_error() -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn(x.shape)

    model = nn.Sequential(nn.Linear(4, 3), Noise())
    with pytest.raises(RuntimeError, match="output 0 for example_inputs differs"):
        rk.compact(model, torch.randn(2, 4))


def test_tracing_leaves_no_marks() -> None:
    """Neither on the model nor on what its forward writes to."""

    def forward(m: Calling, x: Tensor) -> Tensor:
        m.seen = x
        m.calls.append(1)
        return m.last(m.first(x) + torch.ones(6).double())

    model = zeroed(Calling(forward))
    model.calls, model.seen = [], None
    before = set(vars(model))
    small = rk.compact(model).model
    assert set(vars(model)) == set(vars(small)) == before
    assert model.calls == small.calls == [] and model.seen is small.seen is None
