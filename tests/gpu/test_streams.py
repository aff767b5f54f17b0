"""The same input gives the same bits, however often and on whichever stream."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import regkernels
from tests.gpu.training import Training, assert_same_training
from tests.support import cases, engine

pytestmark = pytest.mark.gpu

A_WHILE = 2_000_000
"""Clock cycles, about a millisecond: long enough for what is done too early to be done first."""


@pytest.mark.parametrize("case", [cases.Case("nesterov", "prox", "prox"), *cases.FEW], ids=str)
def test_twenty_runs_give_the_same_bits(case: cases.Case, setting: engine.Setting, interpreted: bool) -> None:
    """Sums included, which are formed in a fixed order."""
    sizes = [1, 33, 8193] if interpreted else [1, 33, 8193, 2**20 + 7]
    weights = [torch.randn(size).to(dtype) for dtype in cases.DTYPES for size in sizes]
    gradients = [[torch.randn(weight.shape).to(weight.dtype) for weight in weights] for _ in range(2)]
    model = cases.Model([weights[::2], weights[1::2]], [[of_step[::2], of_step[1::2]] for of_step in gradients])
    first = engine.train(case, model, setting, max_grad_norm=1.0)
    for _ in range(2 if interpreted else 19):
        again = engine.train(case, model, setting, max_grad_norm=1.0)
        for name, tensor in first.items():
            engine.assert_same_bits(again[name], tensor, name)


def test_twenty_penalties_are_the_same_bits(device: torch.device, interpreted: bool) -> None:
    weights = [nn.Parameter(torch.randn(2**13 + 1 if interpreted else 2**22 + 1, device=device)) for _ in range(3)]
    values = [regkernels.elastic_net_penalty(weights, 0.1, 0.2) for _ in range(20)]
    assert torch.stack(values).unique().numel() == 1


def on_streams(cuda: torch.device, steps: int, before: Callable[[int], list[int]]) -> list[Training]:
    """Two trainings, step by step; ``before(number)`` names the stream of each training's step."""
    trainings = [Training("adamw", cuda, seed=seed, stats=True, max_grad_norm=5.0) for seed in range(2)]
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    last: list[torch.cuda.Stream | None] = [None, None]
    kept = []
    for number in range(steps):
        for index, (training, which) in enumerate(zip(trainings, before(number), strict=True)):
            stream = streams[which]
            if last[index] is not None:
                stream.wait_stream(last[index])
            with torch.cuda.stream(stream):
                torch.cuda._sleep(A_WHILE)
                training.whole()
            last[index] = stream
            kept.append([param.grad for param in training.params])  # its memory belongs to the stream of its step
    torch.cuda.synchronize()
    return trainings


@pytest.mark.parametrize("who", ["two at once", "each alternating", "one following the other"])
def test_streams(who: str, cuda: torch.device) -> None:
    expected = [Training("adamw", cuda, seed=seed, stats=True, max_grad_norm=5.0) for seed in range(2)]
    for _ in range(6):
        for training in expected:
            training.whole()
    plans: dict[str, Callable[[int], list[int]]] = {
        "two at once": lambda number: [0, 1],
        "each alternating": lambda number: [number % 2, 1 - number % 2],
        "one following the other": lambda number: [0, number // 3],
    }
    for got, wanted in zip(on_streams(cuda, 6, plans[who]), expected, strict=True):
        assert_same_training(got, wanted, who)


def test_penalties_of_one_model_on_two_streams(cuda: torch.device) -> None:
    weights = [torch.randn(2**20 + 1, device=cuda) for _ in range(4)]
    expected = regkernels.l1_penalty(weights, 0.1)
    torch.cuda.synchronize()
    found = []
    for stream in [torch.cuda.Stream(), torch.cuda.Stream()] * 3:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(A_WHILE)
            found.append(regkernels.l1_penalty(weights, 0.1))
    torch.cuda.synchronize()
    assert all(torch.equal(value, expected) for value in found)
