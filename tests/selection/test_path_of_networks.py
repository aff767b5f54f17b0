"""Paths of networks, with mini-batches and with a fixed number of steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import regkernels
from regkernels.selection import RegularizationPath, regularization_path, subdiff_distance
from tests.selection.common import X


def rings() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A network for three classes of the points, which no linear model separates."""
    torch.manual_seed(3)
    labels = (X[:, :2].square().sum(1) > 1).long() + (X[:, :2].square().sum(1) > 3).long()
    return nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).double(), (X, labels)


def test_a_network_from_dense_to_sparse() -> None:
    model, data = rings()
    strengths = [1e-3, 1e-2, 3e-2, 0.5]
    ours = regularization_path(
        model,
        cross_entropy,
        data,
        strengths,
        direction="increasing",
        max_steps=3000,
        validation=data,
        score=lambda output, target: (output.argmax(1) == target).double().mean(),
    )
    counts = ours.nonzeros.tolist()
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[2] > 0 and counts[-1] == 0
    assert ours.converged.all() and ours.scores is not None and ours.scores[0] == 1
    for index, strength in enumerate(strengths):
        again = ours.load(rings()[0], index)
        cross_entropy(again(data[0]), data[1]).backward()
        for name, param in again.named_parameters():
            l1 = strength if "weight" in name else 0.0
            assert subdiff_distance(param.detach(), param.grad, l1).max() <= 1e-10 * 0.5 * 1.001  # type: ignore[arg-type]


def test_mini_batches_for_a_network_and_a_fixed_number_of_steps() -> None:
    model, data = rings()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size=16, shuffle=True)
    steps: list[int] = []

    def adam(groups: Any) -> torch.optim.Optimizer:
        optimizer = regkernels.optim.Adam(groups, lr=0.01)
        steps.append(0)
        optimizer.register_step_post_hook(lambda *_: steps.__setitem__(-1, steps[-1] + 1))
        return optimizer

    def run() -> RegularizationPath:
        return regularization_path(
            model,
            cross_entropy,
            loader,
            [1e-3, 1e-2, 1.0],
            direction="increasing",
            optimizer=adam,
            max_steps=150,
            tol=math.inf,
        )

    ours = run()
    assert steps == [150, 150, 150] == ours.steps.tolist() and ours.converged.all()
    assert ours.nonzeros[0] > ours.nonzeros[1] > ours.nonzeros[2] == 0
    torch.manual_seed(3)
    first = run()
    torch.manual_seed(3)
    assert torch.equal(first.weights, run().weights)


@pytest.mark.parametrize("own_optimizer", [True, False])
def test_a_fixed_number_of_steps_over_all_of_the_data(own_optimizer: bool) -> None:
    model, (inputs, targets) = rings()
    adam = (lambda groups: regkernels.optim.Adam(groups, lr=0.01)) if own_optimizer else None
    ours = regularization_path(
        model,
        cross_entropy,
        (inputs, targets),
        [1e-3, 0.1],
        direction="increasing",
        optimizer=adam,
        max_steps=7,
        tol=math.inf,
    )
    assert ours.steps.tolist() == [7, 7] and ours.converged.all()
    assert ours.losses[0] < cross_entropy(model(inputs), targets)
