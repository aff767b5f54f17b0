"""Small networks of the kinds that people prune, and zeros in them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 8, 5)
        self.pool = nn.MaxPool2d(2)
        self.fc1, self.fc2, self.fc3 = nn.Linear(8 * 2 * 2, 20), nn.Linear(20, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.conv1(x)))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(x.size(0), -1)
        return self.fc3(self.fc2(self.fc1(x).relu()).tanh())


class BasicBlock(nn.Module):
    """Of ResNet-18."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(BasicBlock(6, 6), BasicBlock(6, 8, 2), BasicBlock(8, 8))
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.blocks(self.stem(x)), (1, 1))
        return self.fc(torch.flatten(x, 1))


class Transformer(nn.Module):
    """Two blocks with attention, written in plain modules; what can go are hidden units of the MLPs."""

    def __init__(self, gated: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.blocks = nn.ModuleList(Block(8, 12, gated) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(dim=-2))


class Block(nn.Module):
    def __init__(self, width: int, hidden: int, gated: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.gate = nn.Linear(width, hidden) if gated else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        y = self.norm2(x)
        if self.gate is not None:
            return x + self.down(F.silu(self.gate(y)) * self.up(y))
        return x + self.down(F.gelu(self.up(y), approximate="tanh"))


class UNet(nn.Module):
    """Concatenation and transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(8, 8, 1)
        self.up = nn.ConvTranspose2d(8, 5, 2, stride=2)
        self.mix, self.out = nn.Conv2d(11, 6, 3, padding=1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = F.silu(self.down1(x))
        deep = F.silu(self.middle(F.silu(self.down2(first))))
        joined = torch.cat([first, F.silu(self.up(deep))], dim=1)
        return self.out(F.silu(self.mix(joined)))


class ConvNeXt(nn.Module):
    """Depthwise convolution, then a block on channels that lie last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pointwise = nn.Conv2d(2, 8, 2, stride=2), nn.Linear(8, 12)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.project, self.head = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(x).permute(0, 2, 3, 1)
        y = self.project(F.gelu(self.pointwise(y)))
        x = x + y.permute(0, 3, 1, 2)
        return self.head(x.mean((-2, -1)))


class Tokens(nn.Module):
    """An embedding, averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.hidden, self.out = nn.Linear(8, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.sigmoid(self.hidden(self.embed(x)).mean(-2)))


def mlp() -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 10), nn.GELU(), nn.Linear(10, 8)),
        *(nn.Tanh(), nn.Linear(8, 3)),
    )


def vgg() -> nn.Module:
    def stage(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
        return nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(True)

    return nn.Sequential(
        nn.Sequential(*stage(1, 6), *stage(6, 6), nn.MaxPool2d(2), *stage(6, 8), nn.AvgPool2d(2, padding=1)),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Sequential(nn.Linear(8 * 4, 12), nn.BatchNorm1d(12), nn.ReLU(True), nn.Linear(12, 10)),
    )


def mobile() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(2, 6, 1), nn.InstanceNorm2d(6, affine=True), nn.Hardswish()),
        *(nn.Conv2d(6, 12, 3, padding=1, groups=6), nn.BatchNorm2d(12), nn.PReLU(12), nn.Conv2d(12, 5, 1, bias=False)),
        *(nn.PReLU(), nn.Conv2d(5, 4, 1)),
    )


def temporal() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv1d(2, 6, 3, padding=1, padding_mode="circular"), nn.Softplus(), nn.Conv1d(6, 8, 3), nn.GLU(dim=-2)),
        *(
            nn.Upsample(scale_factor=2),
            nn.ReplicationPad1d(1),
            nn.Conv1d(4, 5, 3),
            nn.ELU(),
            nn.Flatten(1),
            nn.Linear(50, 3),
        ),
    )


def volumes() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv3d(1, 5, 2), nn.BatchNorm3d(5, track_running_stats=False), nn.CELU(), nn.Conv3d(5, 6, 2), nn.ReLU6()),
        *(nn.ConvTranspose3d(6, 4, 2), nn.Sigmoid(), nn.Conv3d(4, 2, 1)),
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP": (mlp, (9, 6)),
    "LeNet": (LeNet, (3, 1, 16, 16)),
    "VGG": (vgg, (3, 1, 8, 8)),
    "ResNet": (ResNet, (3, 2, 6, 6)),
    "Transformer": (Transformer, (2, 4, 5)),
    "gated Transformer": (lambda: Transformer(gated=True), (2, 4, 5)),
    "U-Net": (UNet, (2, 2, 6, 6)),
    "ConvNeXt": (ConvNeXt, (2, 2, 8, 8)),
    "MobileNet": (mobile, (2, 2, 5, 5)),
    "Conv1d": (temporal, (2, 2, 7)),
    "Conv3d": (volumes, (2, 1, 5, 5, 5)),
    "embedding": (Tokens, (4, 6)),
}


def batch(name: str, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if name == "embedding":
        return torch.randint(11, NETWORKS[name][1], generator=generator)
    return torch.randn(NETWORKS[name][1], generator=generator, dtype=torch.float64)


WEIGHTS = (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


@torch.no_grad()
def with_zeros(model: nn.Module, seed: int, share: float = 0.3) -> nn.Module:
    """In float64, with random rows, columns, scales, biases and shifts set to zero, and running statistics of a few batches."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double()

    def some(count: int) -> Tensor:
        return torch.rand(count, generator=generator) < share

    for module in model.modules():
        if isinstance(module, WEIGHTS):
            module.weight[some(module.weight.shape[0])] = 0
            module.weight[:, some(module.weight.shape[1])] = 0
        if isinstance(module, NORMS) and module.weight is not None:
            module.weight.normal_(generator=generator)
            module.bias.normal_(generator=generator)
            module.weight[some(len(module.weight))] = 0
            module.bias[some(len(module.bias))] = -1
        if isinstance(module, NORMS) and module.running_mean is not None:
            module.running_var.uniform_(0.5, 2, generator=generator)
            if seed % 2:
                module.running_mean.normal_(generator=generator)
        if isinstance(module, WEIGHTS) and getattr(module, "bias", None) is not None:
            module.bias.normal_(generator=generator)
            module.bias[some(len(module.bias))] = 0
    return model
