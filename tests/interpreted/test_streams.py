"""Tables, gradients and sums on simulated devices whose streams run as late as they may: a number read too early or too late is wrong.

What is expected are the bits of a training whose operations are done at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regkernels
from tests.support import cases, engine
from tests.support.simulated import Simulation, devices, on_host

pytestmark = pytest.mark.interpreted

STRENGTHS = {"lr": 0.0123, "l1": 0.037, "weight_decay": 0.21}
SCHEDULE = [{}, {"lr": 0.05}, {"l1": 0.3}, {"weight_decay": 0.0}, {"lr": 0.0}, {"lr": 0.02, "l1": 0.0}]
EVERYTHING = {"stats": True, "max_grad_norm": 0.5, "skip_nonfinite": True}
SHAPES = ((5,), (3, 11), (70,), (4,))


class Training:
    """Parameters, what pulls at them, and an optimizer whose strengths may be tensors on the device."""

    def __init__(self, rule: str, *places: torch.device, tensors: bool = False, **options: Any) -> None:
        name, own = cases.RULES[rule]
        generator = torch.Generator().manual_seed(0)
        self.params, self.targets = list[nn.Parameter](), list[Tensor]()
        groups = []
        for place in places:
            values = [torch.randn(2, *shape, generator=generator) for shape in SHAPES]
            params = [nn.Parameter(value[0].to(place)) for value in values]
            groups.append({"params": params})
            self.params += params
            self.targets += [value[1].to(place) for value in values]
        self.strengths: dict[str, Any] = dict(STRENGTHS)
        if tensors:
            kind = {"dtype": torch.float64, "device": places[0]}
            self.strengths = {key: torch.full((), value, **kind) for key, value in STRENGTHS.items()}
        self.optimizer = getattr(regkernels.optim, name)(groups, **own, **self.strengths, **options)

    def set(self, **values: float) -> None:
        for name, value in values.items():
            if isinstance(self.strengths[name], Tensor):
                self.strengths[name].fill_(value)
            else:
                for group in self.optimizer.param_groups:
                    group[name] = value

    @torch.no_grad()
    def give(self, without: Sequence[int] = ()) -> None:
        """Gradients, computed on the current streams: in fresh memory, and none for the parameters ``without``."""
        self.optimizer.zero_grad(set_to_none=True)
        for index, (param, target) in enumerate(zip(self.params, self.targets, strict=True)):
            if index not in without:
                param.grad = 2.0 * (param.detach() - target)

    @torch.no_grad()
    def give_in_place(self) -> None:
        for param, target in zip(self.params, self.targets, strict=True):
            if param.grad is not None:
                param.grad.copy_(2.0 * (param.detach() - target))

    def step(self, without: Sequence[int] = ()) -> None:
        self.give(without)
        self.optimizer.step()

    def outcome(self, *, sums: bool = True) -> list[Tensor]:
        """Weights, states and, where they are asked for, sums."""
        states = vars(self.optimizer)["state"]
        tensors = [param.detach() for param in self.params]
        tensors += [states[param][name] for param in self.params if param in states for name in sorted(states[param])]
        tensors += [*(getattr(self.optimizer, "stats", None) or ())] if sums else []
        return on_host(tensors)


def assert_same(got: list[list[Tensor]], expected: list[list[Tensor]]) -> None:
    assert len(got) == len(expected)
    for number, (ours, theirs) in enumerate(zip(got, expected, strict=True)):
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            engine.assert_same_bits(*pair, f"outcome {number}, tensor {index}")


Story = Callable[[Simulation], Iterator[list[Tensor]]]
"""A training that hands out outcomes, whose copies end all waiting."""


def assert_no_order_matters(story: Story) -> None:
    outcomes = []
    for late, others_first in ((False, False), (True, False), (True, True)):
        with devices(2, late=late, others_first=others_first) as simulation:
            outcomes.append(list(story(simulation)))
    for late_ones in outcomes[1:]:
        assert_same(late_ones, outcomes[0])


@contextmanager
def beside(device: torch.device) -> Iterator[None]:
    """On another stream, and back again, each waiting for what came before."""
    side, before = torch.cuda.Stream(device=device), torch.cuda.current_stream(device)
    side.wait_stream(before)
    with torch.cuda.stream(side):
        yield
    before.wait_stream(side)


ONE, OTHER = torch.device("cuda", 0), torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("rule", "places", "options"),
    [
        ("momentum", (OTHER,), EVERYTHING),
        ("momentum", (ONE, OTHER), {}),
        ("adamw", (OTHER,), {}),
        ("adamw", (ONE, OTHER), EVERYTHING),
    ],
    ids=["momentum, everything", "momentum, two devices", "adamw", "adamw, two devices, everything"],
)
def test_steps(rule: str, places: tuple[torch.device, ...], options: dict[str, Any]) -> None:
    """Of which nothing is seen before the last one; on a device that is not the current one, and on two streams in turns."""

    def story(simulation: Simulation) -> Iterator[list[Tensor]]:
        training = Training(rule, *places, **options)
        for number, values in enumerate(SCHEDULE[:3]):
            training.set(**values)
            with simulation.no_waiting():
                training.step(without=(0,) if number in (0, 2) else ())
            with beside(OTHER):
                training.step()
        yield training.outcome()

    assert_no_order_matters(story)


def test_at_once_they_are_the_steps_of_the_reference() -> None:
    outcomes = []
    for place in (torch.device("cpu"), OTHER):
        with devices(2):
            training = Training("adamw", place, stats=True)
            for number, values in enumerate(SCHEDULE):
                training.set(**values)
                with engine.active(engine.Setting("triton") if place is OTHER else engine.REFERENCE):
                    training.step(without=(0,) if number == 0 else ())
            outcomes.append(training.outcome()[: -len(training.optimizer.stats)])
    assert_same(outcomes[1:], outcomes[:1])


def test_penalties() -> None:
    """Of the same weights on two streams that do not wait for each other, so neither may read a table that the other has brought."""

    def story(simulation: Simulation) -> Iterator[list[Tensor]]:
        params = [torch.ones(shape, device=ONE) for shape in SHAPES]
        simulation.synchronize()
        found = []
        for stream in (torch.cuda.current_stream(ONE), torch.cuda.Stream(device=ONE)):
            with torch.cuda.stream(stream):
                for _ in range(2):
                    value = regkernels.l1_penalty(params, 0.5)
                    found += [value, *torch.ops.regkernels.penalty_gradient(value, params, 0.5, 0.0)]
        yield on_host(found)

    assert_no_order_matters(story)


# --- graphs ---


def captured(step: Callable[[], object]) -> Any:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


GRAPHED = [("momentum", EVERYTHING), ("adamw", {"capturable": True, **EVERYTHING})]
LATE, FROZEN = (3,), (0, 3)
"""Which parameters have no gradient at first, and which have none in a graph."""


@pytest.mark.parametrize(("rule", "options"), GRAPHED, ids=["momentum", "adamw"])
def test_replays_follow_the_schedule(rule: str, options: dict[str, Any]) -> None:
    """Of two graphs and eager steps in turns, one of which takes a new plan: the last parameter has its first gradient."""

    def training_of(simulation: Simulation, replay: bool) -> Iterator[list[Tensor]]:
        training = Training(rule, ONE, tensors=True, **options)
        with beside(ONE):
            training.step(LATE)
            training.step(FROZEN)
        again: list[Any] = [partial(training.step, FROZEN)] * 2
        if replay:
            again = [captured(step).replay for step in again]
        training.step(FROZEN)
        for number, values in enumerate(SCHEDULE):
            training.set(**values)
            if number == 3:
                training.step()
            again[number % 2]()
            if number == 1:
                yield training.outcome(sums=False)  # which are those of the latest step that was no replay
        training.step()
        yield training.outcome()

    assert_replays_are_steps(training_of)


@pytest.mark.parametrize(("rule", "options"), GRAPHED, ids=["momentum", "adamw"])
def test_replays_of_a_step_alone(rule: str, options: dict[str, Any]) -> None:
    """Whose gradients stay where they are, while a new plan is made for one more."""

    def training_of(simulation: Simulation, replay: bool) -> Iterator[list[Tensor]]:
        training = Training(rule, ONE, tensors=True, **options)
        training.step(LATE)
        training.step(FROZEN)
        if replay:
            captured(training.optimizer.step)  # and never replayed: what it brought along is not there
        training.give_in_place()
        training.optimizer.step()
        again: Any = captured(training.optimizer.step).replay if replay else training.optimizer.step
        kept = [param.grad for param in training.params]
        for number, values in enumerate(SCHEDULE):
            training.set(**values)
            training.give_in_place()
            if number == 3:
                with torch.no_grad():
                    training.params[3].grad = 2.0 * training.params[3].detach()
                training.optimizer.step()
                training.params[3].grad = None
            again()
            if number == 1:  # sums are those of the latest step, which was captured
                yield training.outcome()
        assert all(param.grad is grad for param, grad in zip(training.params, kept, strict=True))
        training.step()
        yield training.outcome()

    assert_replays_are_steps(training_of)


def assert_replays_are_steps(training_of: Callable[[Simulation, bool], Iterator[list[Tensor]]]) -> None:
    with devices(1) as simulation:
        expected = list(training_of(simulation, False))
    for others_first in (False, True):
        with devices(1, late=True, others_first=others_first) as simulation:
            assert_same(list(training_of(simulation, True)), expected)
