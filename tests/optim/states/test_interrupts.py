"""Ctrl-C, or an exception of anybody, at any line of the package in a step: what is left is a whole step, or none.

The first steps are made again and again, each time stopped at another line, and repeated. Then weights and states are those of
torch after as many steps as were made: one, or two where the first had been made already.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

import regkernels
from regkernels import optim

pytestmark = pytest.mark.usefixtures("one_thread")

HOME = str(Path(regkernels.__file__).parent)


class Stopped(BaseException):
    """As Ctrl-C, which is no Exception either."""


class Stop:
    """Counts the lines of the package that are run, and raises at one of them."""

    def __init__(self, at: int = 0, *, opcodes: bool = False) -> None:
        self.at, self.lines, self._opcodes = at, 0, opcodes

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(HOME):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = self._opcodes, not self._opcodes
        if event in ("line", "opcode"):
            self.lines += 1
            if self.lines == self.at:
                raise Stopped
        return self

    def run(self, step: Callable[[], Any]) -> bool:
        """Whether it was stopped."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            step()
        except Stopped:
            return True
        finally:
            sys.settrace(before)
        return False


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "momentum": ("SGD", {"lr": 0.5, "momentum": 0.9, "dampening": 0.5}),
    "adam": ("Adam", {"lr": 0.1, "betas": (0.5, 0.75)}),
}


def values(optimizer: torch.optim.Optimizer, params: list[nn.Parameter]) -> list[torch.Tensor]:
    states = [optimizer.state[param] for param in params]
    return [*(p.detach() for p in params), *(state[key] for state in states for key in sorted(state))]


class Run:
    """A step, with what is needed to make it again."""

    def __init__(self, kind: str, package: Any, before: int) -> None:
        name, options = KINDS[kind]
        base = torch.arange(24.0).reshape(4, 6)
        self.params = [nn.Parameter(torch.tensor([1.0, -2.0, 3.0])), nn.Parameter(base.clone()[:, ::2])]
        self.optimizer = getattr(package, name)([{"params": [p]} for p in self.params], **options)
        for _ in range(before):
            self.step()

    def step(self) -> None:
        # What is not dense is updated in a copy, which is written back with the next step: its gradient must not depend on it.
        self.params[0].grad = 0.5 * self.params[0].detach()
        self.params[1].grad = torch.arange(12.0).reshape(4, 3)
        self.optimizer.step()


def lines_of(kind: str, before: int, **how: Any) -> int:
    count = Stop(**how)
    count.run(Run(kind, optim, before).step)
    return count.lines


def some(lines: int, every: int) -> Iterator[int]:
    """A few of all lines, and more of the last ones, where weights and states are written."""
    yield from sorted({*range(every, lines + 1, lines // 40), *range(lines - 30 * every, lines + 1, every)})


@pytest.mark.parametrize("opcodes", [False, True], ids=["lines", "instructions"])
@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_was_stopped_anywhere_and_made_again(kind: str, before: int, opcodes: bool) -> None:
    right = [values(run.optimizer, run.params) for run in (Run(kind, torch.optim, before + steps) for steps in (1, 2))]
    made = [0, 0]
    elsewhere = []
    for at in some(lines_of(kind, before, opcodes=opcodes), 11 if opcodes else 2):
        run = Run(kind, optim, before)
        assert Stop(at, opcodes=opcodes).run(run.step)
        run.step()
        found = values(run.optimizer, run.params)
        fits = [all(torch.allclose(a, b) for a, b in zip(found, rights, strict=True)) for rights in right]
        if any(fits):
            made[fits.index(True)] += 1
        else:
            elsewhere.append(at)
    assert not elsewhere
    assert made[0] > 30 and made[1] > 3


def test_options_that_were_being_checked() -> None:
    """A step that is stopped while it looks at options looks at them again, also at those set in that moment."""

    def fresh() -> tuple[nn.Parameter, optim.Optimizer]:
        param = nn.Parameter(torch.ones(3))
        optimizer = optim.SGD([{"params": [param]}, {"params": [nn.Parameter(torch.ones(2))]}], lr=0.25)
        param.grad = torch.ones(3)
        optimizer.step()
        param.grad = torch.ones(3)
        optimizer.param_groups[0]["lr"] = 0.125
        return param, optimizer

    count = Stop()
    count.run(fresh()[1].step)
    for at in range(1, count.lines, 5):
        param, optimizer = fresh()
        assert Stop(at).run(optimizer.step)
        already = 0.75 - float(param.detach()[0])
        optimizer.param_groups[0].update(lr=0.5, l1=0.25)
        optimizer.step()
        right = 0.75 - (0.125 if already else 0.0)
        assert torch.allclose(param, torch.full((3,), right - 0.5 - 0.125)), at
        optimizer.param_groups[0]["lr"] = -1.0
        with pytest.raises(ValueError, match="lr must be >= 0"):
            optimizer.step()


def test_a_group_that_is_gone_and_comes_back() -> None:
    params = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = optim.SGD([{"params": [param]} for param in params], lr=0.25)
    for param in params:
        param.grad = torch.ones(3)
    optimizer.step()
    group = optimizer.param_groups.pop()
    optimizer.step()
    optimizer.param_groups.append(group)
    optimizer.step()
    assert torch.equal(params[0], torch.full((3,), 0.25)) and torch.equal(params[1], torch.full((3,), 0.5))


def test_a_first_step_that_failed_and_came_back_after_other_parameters_had_theirs() -> None:
    """A plan that is made anew in between does not take a buffer of zeros for one of an earlier step."""
    first, late = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    optimizer = optim.SGD([first, late], lr=1.0, momentum=0.5, dampening=0.5)
    first.grad = torch.ones(3)
    count = Stop()
    twin = nn.Parameter(torch.ones(3))
    twin.grad = torch.ones(3)
    count.run(optim.SGD([twin, nn.Parameter(torch.ones(2))], lr=1.0, momentum=0.5, dampening=0.5).step)
    for back in range(count.lines // 2, count.lines // 2 + 5):
        assert Stop(back).run(optimizer.step)
    late.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(first, torch.zeros(3)) and torch.equal(late, torch.zeros(2))
