"""Steps that are left out on a device: it decides, it counts, and the host asks for nothing. Its device is the CPU here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from regkernels import backends
from regkernels.optim.step.counts import DeviceCounts
from regkernels.optim.step.scaling import Scaling
from regkernels.table.deferred import Deferred
from tests.support.skipping import KINDS, RULES, Kind, Training, assert_same, copies

pytestmark = pytest.mark.interpreted

NAN, INF = math.nan, math.inf
STAGED = ("dampening", "staged", "flat halves")
FEW = (
    *("sgd", "amsgrad", "rmsprop_both", "adagrad", "radam", "float64", "radam, float64"),
    *("adamw, remainder", "lion, nearest and bfloat16 states"),
    *STAGED,
)


def small(kind: Kind, **options: Any) -> Training:
    return Training(kind, shapes=((3,), (2, 2), (), (5,)), **options)


@pytest.mark.parametrize("kind", FEW)
def test_a_step_that_is_left_out_never_was(kind: str) -> None:
    """The first, and one between, until RAdam knows its variance: weights, states and counts of the reference that never saw them."""
    ours, reference = small(KINDS[kind], skip_nonfinite=True), small(KINDS[kind])
    for number, bad in enumerate((NAN, None, -INF, None, None, None, None, None)):
        with backends.use("triton"):
            ours.step(number, bad)
        if bad is None:
            with backends.use("reference"):
                reference.step(number)
        assert_same(ours.everything(), copies(reference.everything()), f"step {number}")
        counts = {int(value) for name, value in ours.states.items() if name.endswith("step")}
        assert counts <= {(0, 1, 1, 2, 3, 4, 5, 6)[number]}
    counting = {name for name in ours.states if name.endswith("step")} - reference.states.keys()
    assert not counting or KINDS[kind].rule in ("momentum", "dampening", "nesterov"), "whose first step is another one"


@pytest.mark.parametrize("kind", STAGED)
def test_with_clipping_and_sums(kind: str) -> None:
    options = {"max_grad_norm": 0.5, "stats": True}
    ours, other = small(KINDS[kind], skip_nonfinite=True, **options), small(KINDS[kind], **options)
    for number, bad in enumerate((None, INF, None)):
        ours.step(number, bad)
        if bad is None:
            other.step(number)
        stats = ours.optimizer.stats
        assert stats.grad_norm == INF if bad else stats.grad_norm > 0.5
        for mine, theirs in zip(stats[:3], other.optimizer.stats[:3], strict=True):
            assert torch.equal(mine, theirs)
        assert_same(ours.everything(), copies(other.everything()), f"step {number}")


@pytest.mark.parametrize("bad", [NAN, 1e200])
def test_a_norm_that_is_not_finite(bad: float) -> None:
    training = small(KINDS["float64"], skip_nonfinite=True, stats=True)
    before = copies(training.everything())
    training.step(0, bad)
    assert_same(training.everything(), before)
    assert training.optimizer.stats.grad_norm.isnan() == math.isnan(bad)
    assert all((state == 0).all() for state in training.states.values())


def test_parameters_without_a_gradient_are_not_counted() -> None:
    training = small(RULES["adam"], skip_nonfinite=True)
    for number, (bad, missing) in enumerate([(None, 0), (NAN, 0), (None, 1), (NAN, 1), (None, 3)]):
        training.give(number, bad)
        training.params[missing].grad = None
        training.optimizer.step()
    steps = {name: int(value) for name, value in training.states.items() if name.endswith("step")}
    assert steps == {"0: step": 2, "1: step": 2, "2: step": 3, "3: step": 2}


@pytest.mark.parametrize("rule", ["dampening", "adagrad"])
def test_the_scaler_hands_over_numbers_on_the_device(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are on a GPU: 0-dim float32 tensors that nobody reads."""
    monkeypatch.setattr("regkernels.optim.step.scaling._number", lambda value: value.detach().double().reshape(()))
    ours, other = small(RULES[rule], amp_scaling=True), small(RULES[rule])
    optimizer: Any = ours.optimizer
    for number, found in enumerate((1.0, 0.0, 2.0, 0.0)):
        ours.give(number, NAN if found else None, scale=256.0)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(256.0), torch.tensor([found])
        with no_reading():
            optimizer.step()
        if not found:
            with backends.use("reference"):
                other.step(number)
            assert_same(ours.everything(), copies(other.everything()), f"step {number}")
    assert isinstance(optimizer._stepper.plans[0]._counts, DeviceCounts)


class Waiting(Exception):
    """Something that makes the host wait for the device."""


@contextmanager
def no_reading() -> Iterator[None]:
    """Raises where a number would be taken out of a tensor that stands for one on the device: 0-dim and float64, which no
    table of the host is."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
            original = getattr(Tensor, name)

            def read(self: Tensor, original: Any = original, name: str = name) -> Any:
                if not self.dim() and self.dtype == torch.float64:
                    raise Waiting(name)  # no assert: pytest would want to print the tensor, and read it
                return original(self)

            patch.setattr(Tensor, name, read)
        yield


@pytest.mark.parametrize("rule", ["dampening", "rmsprop", "adagrad", "radam"])
def test_the_host_reads_nothing(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the first step nor later; and what it knows of the step is where to find it."""
    seen: list[Scaling] = []
    with_norm = Scaling.with_norm

    def spy(*arguments: Any) -> Scaling:
        seen.append(with_norm(*arguments))
        return seen[-1]

    monkeypatch.setattr(Scaling, "with_norm", spy)
    training = small(RULES[rule], skip_nonfinite=True, max_grad_norm=1.0, stats=True)
    for number, bad in enumerate((NAN, None, INF)):
        training.give(number, bad)
        with no_reading():
            training.optimizer.step()
            assert training.optimizer.stats.grad_norm.dim() == 0
    assert [int(scaling.skip) for scaling in seen] == [1, 0, 1]
    assert all(isinstance(scaling.skip, Tensor) and isinstance(scaling.factor, Deferred) for scaling in seen)
    plan = training.optimizer._stepper.plans[0]
    assert plan._counts is None or isinstance(plan._counts, DeviceCounts)
    with pytest.raises(Waiting), no_reading():
        float(seen[0].skip)
