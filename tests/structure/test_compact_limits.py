"""What compaction leaves alone, and says so."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import regkernels as rk
from tests.structure.modules import Branching, Calling, hooked, zeroed

pytestmark = pytest.mark.usefixtures("one_thread")


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
