"""Layer by layer, what compaction removes: channels taken out by hand, additions, transformers, layers that keep what they have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regkernels as rk
from tests.structure.test_compact import assert_same
from tests.support.networks import NETWORKS, batch

pytestmark = pytest.mark.usefixtures("one_thread")

ZEROS: dict[str, tuple[str, dict[str, list[int]], dict[str, int]]] = {
    "one zero factor is enough": (
        "gated Transformer",
        {"blocks.0.gate": [1, 2], "blocks.1.gate": [5]},
        {"blocks.0.gate": 10, "blocks.0.up": 10, "blocks.1.gate": 11, "blocks.1.up": 11},
    ),
    "a constant factor is not": ("gated Transformer", {"blocks.0.up": [1]}, {"blocks.0.up": 12}),
    "all of a residual stream": (
        "ResNet",
        {"blocks.1.conv2": [1, 2], "blocks.1.downsample.0": [1, 2], "blocks.2.conv2": [2, 3]},
        {"blocks.1.conv2": 7, "blocks.1.downsample.0": 7, "blocks.2.conv2": 7, "blocks.1.bn2": 7},
    ),
    "within a residual block": (
        "ResNet",
        {"blocks.0.conv1": [0, 4], "stem.0": [3]},
        {"blocks.0.conv1": 4, "stem.0": 6},
    ),
    "scales of a normalisation": ("VGG", {"0.1": [1, 2], "0.4": [0]}, {"0.0": 4, "0.1": 4, "0.3": 5, "0.4": 5}),
    "concatenated": ("U-Net", {"up": [0, 2], "down1": [1], "mix": [5]}, {"up": 3, "down1": 5, "mix": 5}),
    "depthwise filters": ("MobileNet", {"3": [0, 1, 5]}, {"0": 5, "3": 10}),
    "filters before depthwise ones": (
        "MobileNet",
        {"0": [2, 4], "3.bias": [4, 5, 8, 9]},
        {"0": 4, "3": 8, "4": 8, "5": 8, "6": 5},
    ),
    "both halves of a gate": ("Conv1d", {"2": [0, 1, 5]}, {"2": 4}),
    "columns of an embedding": ("embedding", {"embed": [3, 4]}, {"embed": 6}),
    "a stream in two layouts": (
        "ConvNeXt",
        {"stem": [1], "project": [1, 2]},
        {"stem": 7, "project": 7, "depthwise": 7},
    ),
}
"""By kind: the network, the rows, columns of an embedding or scales to set to zero (biases, too), and sizes that must result."""


@pytest.mark.parametrize("case", ZEROS)
def test_removed_by_hand(case: str) -> None:
    name, zeros, expected = ZEROS[case]
    model = NETWORKS[name][0]().double()
    with torch.no_grad():
        for layer, rows in zeros.items():
            if layer.endswith("bias"):
                model.get_parameter(layer)[rows] = 0
                continue
            module = model.get_submodule(layer)
            if (layer == "up" and name == "U-Net") or layer == "embed":
                module.weight[:, rows] = 0
            else:
                module.weight[rows] = 0
            if getattr(module, "bias", None) is not None and case != "a constant factor is not":
                module.bias[rows] = 0
    small = rk.compact(model, batch(name)).model
    assert_same(model, small, batch(name, 1))
    sizes = {
        key: module.weight.shape[1 if isinstance(module, (nn.Embedding, nn.ConvTranspose2d)) else 0]
        for key, module in small.named_modules()
        if isinstance(getattr(module, "weight", None), Tensor)
    }
    assert sizes | expected == sizes, small


def test_channels_added_together_go_together() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(self.a(x) + self.b(x)))

    model = Residual().double()
    with torch.no_grad():
        model.a.weight[[0, 1, 2]] = 0
        model.b.weight[[1, 2, 3]] = 0
    compacted = rk.compact(model, torch.randn(4, 3).double())
    assert [layer.removed_outputs for layer in compacted.removed] == [(1, 2), (1, 2), ()]
    assert [(kept.name, kept.channels) for kept in compacted.kept] == [("a", (0,)), ("b", (3,))]
    assert all("not constant" in kept.reason for kept in compacted.kept)


@pytest.mark.parametrize("activation", ["relu", "gelu", nn.LeakyReLU(), torch.cumsum])
def test_transformers_of_torch(activation: Any) -> None:
    function = (lambda x: x.cumsum(-1)) if activation is torch.cumsum else activation
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation=function)
    with torch.no_grad():
        layer.linear1.weight[[1, 2]] = 0
        layer.linear1.bias[1], layer.linear1.bias[2] = 0, 1
        layer.linear2.weight[:, 5] = 0
    x = torch.randn(2, 5, 8)
    for model in (
        nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
        nn.Sequential(nn.Linear(8, 8), layer),
        layer,
    ):
        model = model.eval()
        for eval_only, hidden in ((False, 14), (True, 13)):
            compacted = rk.compact(model, x, eval_only=eval_only)
            sizes = [m.out_features for name, m in compacted.model.named_modules() if name.endswith("linear1")]
            assert set(sizes) == {16 if activation is torch.cumsum else hidden}
            with torch.no_grad():  # torch's fast path
                torch.testing.assert_close(compacted.model(x), model(x))


def test_a_reason_names_the_model_where_a_layer_would_have_no_name() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    with torch.no_grad():
        layer.linear1.weight[:, 3] = 0
    assert "the model is a TransformerEncoderLayer" in str(rk.compact(layer))


def test_a_shared_transformer_layer_stays() -> None:
    layer, other = nn.TransformerEncoderLayer(8, 2, 16), nn.TransformerEncoderLayer(8, 2, 16)
    nn.init.zeros_(layer.linear1.weight)
    other.linear1 = layer.linear1
    model = nn.Sequential(layer, other).eval()
    compacted = rk.compact(model, torch.randn(3, 2, 8), eval_only=True)
    assert not compacted.removed


def test_a_depthwise_convolution_with_one_channel_left() -> None:
    model = nn.Sequential(
        nn.Conv1d(2, 3, 1), nn.Tanh(), nn.Conv1d(3, 6, 1, groups=3), nn.Tanh(), nn.Conv1d(6, 2, 1)
    ).double()
    with torch.no_grad():
        model[0].weight[:2] = 0
        model[2].weight[4] = 0
    compacted = rk.compact(model)
    assert compacted.model[2].weight.shape == (1, 1, 1) and compacted.model[2].groups == 1
    assert compacted.removed[1][:5] == ("2", (0, 1, 2, 3, 4), (0, 1), 1, 1)
    assert_same(model, compacted.model, torch.randn(2, 2, 3).double())


def test_a_layer_alone() -> None:
    model = nn.Linear(3, 2)
    nn.init.zeros_(model.weight)
    compacted = rk.compact(model, torch.randn(4, 3))
    assert not compacted.removed and [kept.reason for kept in compacted.kept] == [
        "the model's output",
        "the model's input",
    ]


def test_printed() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight[1] = 0
        model[2].weight[0] = 0
    assert str(rk.compact(model)) == (
        "26 -> 20 parameters (76.9 %)\n"
        "layer  outputs  inputs  parameters\n"
        "----------------------------------\n"
        "0       4 -> 3       3    16 -> 12\n"
        "2            2  4 -> 3     10 -> 8\n"
        "kept, although zero or read by nobody:\n"
        "  2: 1 outputs (0): the model's output"
    )
