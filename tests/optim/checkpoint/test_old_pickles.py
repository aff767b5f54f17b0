"""Optimizers that version 0.1 pickled whole load, and go on as they would have there.

data/optimizers_0_1.pt was written by 0.1 before its modules moved: for each optimizer its pickle after three steps, and the weights
after two more.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regkernels import optim

CASES: dict[str, Any] = torch.load(Path(__file__).with_name("data") / "optimizers_0_1.pt")


def gradient(step: int, index: int, param: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(100 * step + index)
    return torch.randn(param.shape, generator=generator).to(param.dtype)


@pytest.mark.parametrize("name", CASES)
def test_pickles_of_0_1(name: str) -> None:
    optimizer = pickle.loads(CASES[name]["pickle"])
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for step in (3, 4):
        for index, param in enumerate(params):
            param.grad = gradient(step, index, param)
        optimizer.step()
    for param, expected in zip(params, CASES[name]["weights"], strict=True):
        assert torch.equal(param, expected)
    assert pickle.loads(pickle.dumps(optimizer)).state_dict().keys() == optimizer.state_dict().keys()


def test_an_optimizer_takes_the_state_of_another_with_its_arguments() -> None:
    """As copy.copy does: both then work on one dictionary of states, and each sees what is exchanged in it."""
    param = torch.nn.Parameter(torch.ones(1))
    param.grad = torch.ones(1)
    one = optim.SGD([param], lr=0.1, momentum=0.9, stats=True)
    one.step()
    other = optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    other.__setstate__(one.__getstate__())
    other.step()
    assert other.stats is not None
    one.state[param]["momentum_buffer"] = torch.zeros(1)
    before = param.detach().clone()
    other.step()
    torch.testing.assert_close(param.detach(), before - 0.1)
