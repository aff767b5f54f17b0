"""Small modules whose forward is given, and zeros in them: what the tests of the limits of compaction share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


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


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.sum() > 0 else x
