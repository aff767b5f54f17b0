"""Networks put together at random, with random parts dead, compute the same when they are compacted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import regkernels as rk

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTHS = st.sampled_from([4, 6, 8])
ACTIVATIONS = st.sampled_from([nn.ReLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.Identity, nn.Softplus])


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Gated(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Chunked(nn.Module):
    """One layer for both factors."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.both, self.down = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.both(x).chunk(2, -1)
        return self.down(torch.sigmoid(gate) * up)


class Concatenated(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(width, hidden), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), x, self.other(x)], -1)


class Squeezed(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


class Scaled(nn.Module):
    """A scale per feature, as of layer scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def dense_block(draw: Any, width: int) -> tuple[nn.Module, int]:
    hidden, kind = draw(WIDTHS), draw(st.integers(0, 8))
    mlp = nn.Sequential(
        nn.Linear(width, hidden), draw(ACTIVATIONS)(), nn.Linear(hidden, width, bias=draw(st.booleans()))
    )
    made: list[tuple[nn.Module, int]] = [
        (nn.Sequential(nn.Linear(width, hidden, bias=draw(st.booleans())), draw(ACTIVATIONS)()), hidden),
        (Residual(mlp), width),
        (Residual(nn.Sequential(nn.LayerNorm(width), mlp)), width),
        (Gated(width, hidden), width),
        (Residual(Chunked(width, hidden)), width),
        (Concatenated(width, hidden), hidden + width + 3),
        (nn.Sequential(nn.BatchNorm1d(width), draw(ACTIVATIONS)()), width),
        (Scaled(width), width),
        (nn.Sequential(nn.Linear(width, 2 * hidden), nn.GLU()), hidden),
    ]
    return made[kind]


def image_block(draw: Any, channels: int) -> tuple[nn.Module, int]:
    others, kind = draw(WIDTHS), draw(st.integers(0, 6))
    convolution = nn.Conv2d(channels, others, 3, padding=draw(st.sampled_from([0, 1])), bias=draw(st.booleans()))
    same = nn.Conv2d(channels, channels, 3, padding=1)
    made: list[tuple[nn.Module, int]] = [
        (nn.Sequential(convolution, draw(ACTIVATIONS)()), others),
        (nn.Sequential(convolution, nn.BatchNorm2d(others), nn.ReLU()), others),
        (Residual(nn.Sequential(same, nn.BatchNorm2d(channels), nn.ReLU())), channels),
        (nn.Conv2d(channels, channels, 3, padding=1, groups=channels), channels),
        (Squeezed(channels, others), channels),
        (nn.Sequential(nn.Conv2d(channels, others, 1), nn.GroupNorm(2, others)), others),
        (draw(st.sampled_from([nn.AvgPool2d, nn.MaxPool2d]))(3, 1, 1), channels),
    ]
    return made[kind]


@st.composite
def networks(draw: Any) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(draw(st.integers(0, 2**16)))
    blocks: list[nn.Module] = []
    x = torch.randn(4, 5)
    width = 5
    if draw(st.booleans()):
        x, width = torch.randn(4, 3, 8, 8), 3
        for _ in range(draw(st.integers(1, 3))):
            block, width = image_block(draw, width)
            blocks.append(block)
        blocks.append(
            draw(st.sampled_from([nn.Flatten, lambda: nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())]))()
        )
        width = nn.Sequential(*blocks).eval()(x).shape[1]
    for _ in range(draw(st.integers(1, 4))):
        block, width = dense_block(draw, width)
        blocks.append(block)
    model = nn.Sequential(*blocks, nn.Linear(width, 3)).double()
    with torch.no_grad():
        for module in model.modules():
            weight = getattr(module, "weight", getattr(module, "scale", None))
            if not isinstance(weight, nn.Parameter):
                continue
            share = draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
            dead = torch.rand(len(weight)) < share
            weight[dead] = 0
            bias = getattr(module, "bias", None)
            if isinstance(bias, nn.Parameter):
                bias[dead] = draw(st.sampled_from([0.0, -0.5, 0.5]))
            if weight.dim() > 1 and draw(st.booleans()):
                weight[:, torch.rand(weight.shape[1]) < share] = 0
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.copy_(torch.randn(len(weight)))
                module.running_var.copy_(torch.rand(len(weight)) + 0.1)
    return model, x.double()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(drawn=networks(), eval_only=st.booleans(), with_example=st.booleans())
def test_random_networks_compute_the_same(drawn: tuple[nn.Module, Tensor], eval_only: bool, with_example: bool) -> None:
    model, x = drawn
    found = rk.compact(model, x if with_example else None, eval_only=eval_only)
    assert found.parameters <= found.parameters_before
    for training in (False,) if eval_only else (False, True):
        outputs = [module.train(training)(x) for module in (model, found.model)]
        torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)
