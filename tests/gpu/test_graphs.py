"""CUDA graphs: a replay is the eager step, and sees what a scheduler has written since."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.gpu.training import RULES, Training, assert_same_training

pytestmark = pytest.mark.gpu

SCHEDULE = [
    {},
    {"lr": 0.05},
    {"l1": 0.3},
    {"weight_decay": 0.0},
    {"lr": 0.0},
    {"lr": 0.02, "l1": 0.0, "weight_decay": 0.5},
]
WARM_UP = 3


def options(rule: str) -> dict[str, Any]:
    """SGD has no step count that a graph would have to advance, and no such argument."""
    return {"tensors": True} if rule in ("sgd", "nesterov") else {"tensors": True, "capturable": True}


def warm_up(step: Callable[[], object]) -> None:
    """On a side stream, as torch's documentation asks for."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(side)


def captured(step: Callable[[], object]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


@pytest.mark.parametrize("what", ["forward, backward and step", "step"])
@pytest.mark.parametrize("stats", [False, True])
@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
@pytest.mark.parametrize("rule", RULES)
def test_replays_follow_the_schedule(
    rule: str, max_grad_norm: float | None, stats: bool, what: str, cuda: torch.device
) -> None:
    more = {**options(rule), "stats": stats, "max_grad_norm": max_grad_norm}
    graphed, eager = Training(rule, cuda, **more), Training(rule, cuda, **more)
    warm_up(graphed.whole)
    for _ in range(WARM_UP):
        eager.whole()
    if what == "step":
        graph = captured(graphed.optimizer.step)
    else:
        graphed.optimizer.zero_grad(set_to_none=True)
        graph = captured(graphed.whole)
    for number, values in enumerate(SCHEDULE):
        for training in (graphed, eager):
            training.set(**values)
        if what == "step":
            for training in (graphed, eager):
                for param in training.params:
                    param.grad.zero_()
                training.backward()
            eager.optimizer.step()
        else:
            eager.whole()
        graph.replay()
        assert_same_training(graphed, eager, f"replay {number}")
    if rule not in ("sgd", "nesterov"):
        assert graphed.counts == {WARM_UP + len(SCHEDULE)}


@pytest.mark.parametrize("rule", ["nesterov", "adam", "adamw"])
def test_a_learning_rate_of_zero_and_an_l1_beyond_all_weights_are_seen(rule: str, cuda: torch.device) -> None:
    training = Training(rule, cuda, **options(rule))
    warm_up(training.whole)
    graph = captured(training.whole)
    before = [param.detach().clone() for param in training.params]
    training.set(lr=0.0)
    graph.replay()
    assert all(torch.equal(param, old) for param, old in zip(training.params, before, strict=True))
    training.set(lr=0.1, l1=1e9)
    graph.replay()
    assert not any(param.any() for param in training.params)


@pytest.mark.parametrize("rule", ["nesterov", "adam"])
def test_two_graphs_of_one_optimizer_with_eager_steps_between_them(rule: str, cuda: torch.device) -> None:
    graphed, eager = (Training(rule, cuda, stats=True, **options(rule)) for _ in range(2))
    warm_up(graphed.whole)
    for _ in range(WARM_UP):
        eager.whole()
    graphs = []
    for _ in range(2):
        graphed.optimizer.zero_grad(set_to_none=True)
        graphs.append(captured(graphed.whole))
    for which in (0, None, 1, 1, None, None, 0, 1, None, 0, None):
        if which is None:
            graphed.whole()
        else:
            graphs[which].replay()
        eager.whole()
        states = (vars(training.optimizer)["state"] for training in (graphed, eager))
        for ours, theirs in zip(*(state.items() for state in states), strict=True):
            assert torch.equal(ours[0], theirs[0])
            assert all(torch.equal(ours[1][name], theirs[1][name]) for name in theirs[1])
    assert_same_training(graphed, eager)  # the last step was eager, so the sums are those of that step


@pytest.mark.parametrize("rule", ["nesterov", "adam"])
def test_replays_go_on_after_an_eager_step_with_more_parameters(rule: str, cuda: torch.device) -> None:
    """The graph works on the memory that it saw: no count, state or buffer may have moved."""
    graphed, eager = (Training(rule, cuda, **options(rule)) for _ in range(2))
    warm_up(graphed.whole)
    for _ in range(WARM_UP):
        eager.whole()
    graphed.optimizer.zero_grad(set_to_none=True)
    graph = captured(graphed.whole)
    graph.replay()
    eager.whole()
    for training in (graphed, eager):
        late = torch.nn.Parameter(torch.ones(5, device=cuda))
        training.optimizer.add_param_group({"params": [late]})
        training.optimizer.zero_grad(set_to_none=True)
        training.backward()
        late.grad = torch.ones(5, device=cuda)
        training.optimizer.step()
        late.grad = None
    for number in range(3):
        graph.replay()
        eager.whole()
        assert_same_training(graphed, eager, f"replay {number}")


@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_sums_after_a_replay_are_those_of_the_replay(rule: str, cuda: torch.device) -> None:
    training = Training(rule, cuda, stats=True, **options(rule))
    warm_up(training.whole)
    graph = captured(training.whole)
    for l1 in (0.01, 0.5, 2.0):
        training.set(l1=l1)
        graph.replay()
        stats = training.optimizer.stats
        weights = torch.cat([param.detach().double().flatten() for param in training.params])
        assert stats.nonzeros.item() == weights.count_nonzero().item()
        torch.testing.assert_close(stats.l1_norm[0], weights.abs().sum(), rtol=1e-12, atol=0)


def assert_refused(training: Training, other: Training, match: str) -> None:
    """A capture of a step is, and ``training`` goes on like ``other``, as if nothing had happened."""
    with pytest.raises(RuntimeError, match=match):
        captured(training.optimizer.step)
    torch.cuda.synchronize()
    for each in (training, other):
        each.whole()
    assert_same_training(training, other, "as if nothing had happened")


def test_a_capture_of_an_optimizer_that_is_not_capturable_is_refused(cuda: torch.device) -> None:
    training, other = Training("adamw", cuda), Training("adamw", cuda)
    warm_up(training.whole)
    for _ in range(WARM_UP):
        other.whole()
    assert_refused(training, other, "capturable")


@pytest.mark.parametrize("rule", ["sgd", "nesterov", "adam"])
def test_a_first_step_inside_a_capture_is_refused(rule: str, cuda: torch.device) -> None:
    training, other = Training(rule, cuda, **options(rule)), Training(rule, cuda, **options(rule))
    training.backward()
    assert_refused(training, other, "cannot record")


@pytest.mark.parametrize("rule", ["adam", "adamw"])
def test_counts_on_the_device_make_the_same_steps(rule: str, device: torch.device) -> None:
    """To rounding: the device computes its powers itself."""
    capturable, plain = Training(rule, device, capturable=True), Training(rule, device)
    for step in range(1, 4):
        for training in (capturable, plain):
            training.whole()
        assert capturable.counts == {step}
    for got, expected in zip(capturable.params, plain.params, strict=True):
        tolerance = 1e-5 if got.dtype == torch.float32 else 1e-2
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rule", ["sgd", "nesterov"])
def test_strengths_on_the_device_make_the_same_bits(rule: str, device: torch.device) -> None:
    tensors, floats = Training(rule, device, tensors=True), Training(rule, device)
    for values in SCHEDULE:
        for training in (tensors, floats):
            training.set(**values)
            training.whole()
        assert_same_training(tensors, floats, values)
