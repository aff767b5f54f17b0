"""What compaction leaves alone, and says so."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import regkernels as rk
from tests.structure.test_compact import assert_same
from tests.support.networks import NETWORKS, with_zeros


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@torch.no_grad()
def zeroed(model: nn.Module) -> nn.Module:
    """In float64, with the second channel of every layer zero, and biases of one."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            module.weight[1] = 0
            if module.bias is not None:
                module.bias.fill_(1)
    return model.double()


class Calling(nn.Module):
    """Two layers, and a forward that is given."""

    def __init__(
        self, forward: Callable[[Any, Tensor], Any], first: nn.Module | None = None, **more: nn.Module
    ) -> None:
        super().__init__()
        self.first = first or nn.Linear(4, 6)
        self.last = nn.Linear(6, 3)
        for name, module in more.items():
            setattr(self, name, module)
        self._function = forward

    def forward(self, x: Tensor) -> Any:
        return self._function(self, x)


def hooked(m: Calling, x: Tensor) -> Tensor:
    return m.last(m.first(x).relu())


def in_place_on_a_shortcut(m: Calling, x: Tensor) -> Tensor:
    y = m.first(x)
    z = m.extra(F.relu(y, inplace=True))
    return m.last(y + z)


def in_place_after_a_view(m: Calling, x: Tensor) -> Tensor:
    y = m.first(x)
    y.detach().sub_(1)
    return m.last(y)


LEFT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "padding with zeros": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1)),
        (2, 1, 6, 6),
        "pads with zeros",
    ),
    "padding 'same'": (
        lambda: nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Conv1d(4, 2, 3, padding="same")),
        (2, 1, 6),
        "pads with zeros",
    ),
    "transposed convolution": (
        lambda: nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.ConvTranspose1d(4, 2, 3)),
        (2, 1, 6),
        "pads with zeros",
    ),
    "averages over padding": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.AvgPool2d(2, padding=1), nn.Flatten(), nn.Linear(36, 2)),
        (2, 1, 6, 6),
        "not constant",
    ),
    "padding module": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ZeroPad2d(1), nn.Conv2d(4, 2, 3)),
        (2, 1, 6, 6),
        "not constant",
    ),
    "layer normalisation": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)),
        (5, 4),
        "LayerNorm) mixes them",
    ),
    "group normalisation": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 3)),
        (2, 1, 6, 6),
        "GroupNorm) mixes them",
    ),
    "instance normalisation of two dimensions": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.InstanceNorm1d(6), nn.Linear(6, 3)),
        (6, 4),
        "InstanceNorm1d) normalises along another dimension",
    ),
    "softmax": (lambda: nn.Sequential(nn.Linear(4, 6), nn.Softmax(-1), nn.Linear(6, 3)), (5, 4), "Softmax) mixes them"),
    "dropout": (lambda: nn.Sequential(nn.Linear(4, 6), nn.Dropout(), nn.Linear(6, 3)), (5, 4), "eval_only=True"),
    "statistics that have not settled": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)),
        (5, 4),
        "not settled",
    ),
    "groups": (
        lambda: nn.Sequential(nn.Conv1d(1, 4, 3), nn.Conv1d(4, 4, 3, groups=2), nn.Conv1d(4, 2, 1)),
        (2, 1, 9),
        "has groups=2",
    ),
    "a layer not known": (lambda: nn.Sequential(nn.Linear(4, 6), nn.RNN(6, 6)), (5, 4), "RNN) may mix them"),
    "pooling over channels": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.MaxPool1d(2), nn.Linear(3, 3)),
        (2, 5, 4),
        "MaxPool1d) goes over them",
    ),
    "a residual from the input": (
        lambda: Calling(lambda m, x: m.last(m.first(x[..., :4]) + x)),
        (5, 6),
        "may mix them",
    ),
    "a function not known": (
        lambda: Calling(lambda m, x: m.last(m.first(x).cumsum(-1))),
        (5, 4),
        "cumsum) may mix them",
    ),
    "mean over channels": (
        lambda: Calling(lambda m, x: m.last(m.first(x) - m.first(x).mean(-1, keepdim=True))),
        (5, 4),
        "used more than once",
    ),
    "the number of channels": (
        lambda: Calling(lambda m, x: (lambda y: m.last(y / y.size(-1)))(m.first(x))),
        (5, 4),
        "asks for their number",
    ),
    "sizes written down": (lambda: Calling(lambda m, x: m.last(m.first(x).view(-1, 6))), (5, 4), "reshaped to (-1, 6)"),
    "a weight read directly": (
        lambda: Calling(lambda m, x: m.last(m.first(x)) @ m.last.weight @ m.first.weight),
        (5, 4),
        "read by forward itself",
    ),
    "hooks": (lambda: _with_hook(Calling(hooked)), (5, 4), "first has hooks"),
    "parametrization": (
        lambda: _parametrized(Calling(hooked)),
        (5, 4),
        "remove_parametrizations",
    ),
    "a module used twice": (
        lambda: Calling(lambda m, x: m.last(m.first(m.first(x))), nn.Linear(6, 6)),
        (5, 6),
        "first is used more than once",
    ),
    "tied parameters": (lambda: _tied(), (5, 6), "shares a parameter with extra.weight"),
    "in place, and read again": (
        lambda: Calling(in_place_on_a_shortcut, extra=nn.Linear(6, 6)),
        (5, 4),
        "changes them in place",
    ),
    "in place through a view": (lambda: Calling(in_place_after_a_view), (5, 4), "changes them in place"),
    "a submodule that cannot be traced": (
        lambda: nn.Sequential(nn.Linear(4, 6), Branching(), nn.Linear(6, 3)),
        (5, 4),
        "1 cannot be traced (TraceError",
    ),
    "returned": (lambda: Calling(lambda m, x: (m.first(x), m.last(m.first(x)))), (5, 4), "used more than once"),
    "also an output": (
        lambda: Calling(lambda m, x: (lambda y: (y, m.last(y)))(m.first(x))),
        (5, 4),
        "the model's output",
    ),
}


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.sum() > 0 else x


def _with_hook(model: Calling) -> nn.Module:
    model.first.register_forward_hook(lambda module, inputs, output: output * 2)
    return model


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def _parametrized(model: Calling) -> nn.Module:
    model.first.weight.data[1] = 0
    parametrize.register_parametrization(model.first, "weight", Doubled())
    return model


def _tied() -> nn.Module:
    model = Calling(lambda m, x: m.last(m.extra(m.first(x))), nn.Linear(6, 6), extra=nn.Linear(6, 6))
    model.extra.weight = model.first.weight
    return model


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    result = copy.deepcopy(model).eval()(x.clone())
    return list(result) if isinstance(result, tuple) else [result]


@pytest.mark.parametrize("case", LEFT)
def test_left_and_said(case: str) -> None:
    make, shape, reason = LEFT[case]
    model = zeroed(make())
    x = torch.randn(shape, dtype=torch.float64)
    compacted = rk.compact(model, None if case == "a layer not known" else x)
    first = next(
        name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d))
    )
    old, new = model.get_submodule(first), compacted.model.get_submodule(first)
    assert new.weight.shape == old.weight.shape
    assert any(kept.name == first and kept.channels == (1,) and reason in kept.reason for kept in compacted.kept), (
        compacted
    )
    if case != "a layer not known":
        for a, b in zip(outputs(model, x), outputs(compacted.model, x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", ["dropout", "statistics that have not settled"])
def test_eval_only_removes_what_differs_in_training(case: str) -> None:
    make, shape, _ = LEFT[case]
    model = zeroed(make())
    compacted = rk.compact(model, eval_only=True)
    assert compacted.model[0].out_features == 5
    assert_same(model, compacted.model, torch.randn(shape, dtype=torch.float64), (False,))


def test_statistics_settle() -> None:
    model = zeroed(LEFT["statistics that have not settled"][0]()).train()
    for _ in range(400):
        model(torch.randn(5, 4).double())
    small = rk.compact(model).model
    assert small[0].out_features == small[1].num_features == 5
    assert_same(model, small, torch.randn(5, 4).double())


def test_some_modules_in_evaluation_mode() -> None:
    """Neither all in training nor all in evaluation mode: the same in that state, too."""
    model = with_zeros(NETWORKS["VGG"][0](), 1)
    model[0][1].eval()
    model[3][1].eval()
    small = rk.compact(model).model
    x = torch.randn(3, 1, 8, 8).double()
    torch.testing.assert_close(small(x), model(x), rtol=1e-12, atol=1e-12)


def test_zero_columns_of_the_input_and_what_is_not_called() -> None:
    model = Calling(hooked, unused=nn.Linear(2, 2))
    with torch.no_grad():
        model.first.weight[:, 2] = 0
        model.unused.weight[1] = 0
    kept = rk.compact(model).kept
    assert [(k.name, k.side, k.channels) for k in kept] == [("first", "inputs", (2,)), ("unused", "outputs", (1,))]
    assert "the model's input" in kept[0].reason and "does not call it" in kept[1].reason


def test_inside_of_what_cannot_be_traced() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), Branching())
    compacted = rk.compact(zeroed(model))
    assert compacted.model[0].out_features == 5 and compacted.model[2].out_features == 6
    inner = next(kept for kept in compacted.kept if kept.name == "3.inner")
    assert "3 cannot be traced" in inner.reason


def test_what_forward_does_in_training_only_counts() -> None:
    def forward(m: Calling, x: Tensor) -> Tensor:
        y = m.first(x)
        return m.last(y.cumsum(-1) if m.training else y)

    model = zeroed(Calling(forward))
    assert not rk.compact(model).removed
    assert rk.compact(model, eval_only=True).model.first.out_features == 5


def test_what_is_read_from_elsewhere_in_training_counts() -> None:
    model = zeroed(Calling(lambda m, x: m.last(x if m.training else m.first(x)), nn.Linear(6, 6)))
    assert not rk.compact(model).removed
    small = rk.compact(model, eval_only=True).model
    assert small.first.out_features == small.last.in_features == 5


def test_what_forward_does_in_the_state_it_is_in_counts() -> None:
    def forward(m: Calling, x: Tensor) -> Tensor:
        y = m.first(x)
        return m.last(y.cumsum(-1) if m.training and not m.first.training else y)

    model = zeroed(Calling(forward))
    assert rk.compact(model).model.first.out_features == 5
    model.first.eval()
    assert not rk.compact(model).removed


@pytest.mark.parametrize(("bias", "left"), [(1.0, 5), (2.0, 6)])
def test_concatenated_along_another_dimension(bias: float, left: int) -> None:
    """The constants have to be the same in all parts."""
    model = Calling(lambda m, x: m.last(torch.cat([m.first(x), m.extra(x)], -2)), extra=nn.Linear(4, 6))
    model = zeroed(model)
    with torch.no_grad():
        model.extra.bias[1] = bias
    x = torch.randn(3, 2, 4).double()
    small = rk.compact(model, x).model
    assert small.first.out_features == small.extra.out_features == left
    torch.testing.assert_close(small(x), model(x), rtol=1e-12, atol=1e-12)


def test_optional_arguments_are_at_their_defaults_or_given() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor, mask: Tensor | None = None, mixed: bool = False) -> Tensor:
            y = self.first(x)
            if mask is not None:
                y = y * mask
            return self.last(y.cumsum(-1) if mixed else y)

    model, x = zeroed(Optional()), torch.randn(5, 4).double()
    assert rk.compact(model).model.first.out_features == 5
    assert rk.compact(model, x).model.first.out_features == 5
    assert rk.compact(model, (x, torch.ones(6).double())).model.first.out_features == 6
    assert rk.compact(model, (x, None, True)).model.first.out_features == 6


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
    with pytest.raises(ValueError, match=r"cannot be traced by torch\.fx .IndexError"):
        rk.compact(model)


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
    (Loop, ValueError, "forward of Loop cannot be traced by torch.fx .*compact its parts one by one"),
    (Hidden, ValueError, "forward of Hidden cannot be traced .*parameters outside of the graph"),
    (lambda: zeroed(Sizes()), ValueError, "forward depends on the sizes of layers"),
]


@pytest.mark.parametrize(("make", "error", "message"), REFUSED)
def test_refused(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        rk.compact(make())


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
