"""A process that knows nothing of the one that has saved: builds networks, loads their files, writes what they answer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import regkernels as rk
from tests.support.networks import NETWORKS, batch


class Tied(nn.Module):
    """A language model whose head has the weights of the embedding, and a buffer that its state dict does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        return self.head(self.scale * y + self.down(self.up(y).relu()))


def unbiased() -> nn.Module:
    """Gets a bias where there is none."""
    return nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 7, bias=False), nn.Tanh(), nn.Linear(7, 3))


NETWORKS_READ: dict[str, Callable[[], nn.Module]] = {
    **{name: make for name, (make, _) in NETWORKS.items()},
    "tied": Tied,
    "without biases": unbiased,
}


def inputs(name: str) -> Tensor:
    if name in NETWORKS:
        return batch(name, 3)
    generator = torch.Generator().manual_seed(3)
    if name == "tied":
        return torch.randint(11, (4, 6), generator=generator)
    return torch.randn(5, 6, generator=generator, dtype=torch.float64)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    answers = {}
    for name, make in NETWORKS_READ.items():
        torch.manual_seed(99)
        model = rk.load_compacted(folder / name, make())
        answers[name] = {"training": model.training, "output": model.eval()(inputs(name)), "state": model.state_dict()}
    torch.save(answers, folder / "answers")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
