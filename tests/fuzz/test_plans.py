"""Trainings that nobody listed: the same bits by kernels and reference, torch's steps without regularisation, sums as in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.fuzz import engine as fuzz
from tests.fuzz.profiles import fuzzed
from tests.fuzz.strategies import Plan, plans
from tests.support import cases, engine

each_rule = pytest.mark.parametrize("rule", cases.STATES)
settings = st.sampled_from(engine.kernels(threads=(1, 2)))


@each_rule
@fuzzed(12)
@given(data=st.data(), setting=settings)
def test_kernels_have_the_references_bits(rule: str, data: st.DataObject, setting: engine.Setting) -> None:
    plan = data.draw(plans(rule=rule))
    assert_same(fuzz.train(plan, setting), fuzz.train(plan, engine.REFERENCE), setting)


WITHOUT_NORMS = {"max_grad_norm": None, "skip_nonfinite": False}
"""What needs all gradients at once cannot be had in the backward pass."""


@fuzzed(30)
@given(plan=plans(), how=st.sampled_from(["closure", "flat", "offload"]), setting=settings)
def test_however_it_is_called(plan: Plan, how: str, setting: engine.Setting) -> None:
    assert_same(fuzz.train(plan, setting, how), fuzz.train(plan, engine.REFERENCE), f"{setting}, {how}")


@fuzzed(30)
@given(plan=plans(**WITHOUT_NORMS), setting=settings)
def test_in_the_backward_pass(plan: Plan, setting: engine.Setting) -> None:
    expected, count = fuzz.train(plan, engine.REFERENCE), sum(len(group.params) for group in plan.groups)
    for step, got in zip(plan.steps, fuzz.train(plan, setting, "backward"), strict=True):
        wanted = expected.pop(0)
        if len(step.missing) >= count:  # there is no backward pass, whose sums there could be
            got, wanted = without_stats(got), without_stats(wanted)
        if plan.rule in ("SGD", "Lion"):  # whose steps have no numbers
            got, wanted = without_idle_counts(got), without_idle_counts(wanted)
        engine.assert_same(got, wanted, f"{setting}, {step}")


def assert_same(got: list[engine.Outcome], expected: list[engine.Outcome], note: object) -> None:
    for step, (one, other) in enumerate(zip(got, expected, strict=True)):
        engine.assert_same(one, other, f"{note}, after step {step}")


def without_stats(outcome: engine.Outcome) -> engine.Outcome:
    return {name: tensor for name, tensor in outcome.items() if not name.startswith("stats")}


def without_idle_counts(outcome: engine.Outcome) -> engine.Outcome:
    """Leaves out the counts that no random number depends on, which a parameter has if another one in its step needs one."""
    return {
        name: tensor
        for name, tensor in outcome.items()
        if not (name.endswith(": step") and tensor.dtype == torch.float32)
    }


# --- against torch ---

DIGITS = {torch.float64: 1e-11, torch.complex128: 1e-11, torch.float32: 3e-5, torch.complex64: 3e-5}


@pytest.mark.parametrize("rule", [rule for rule in cases.STATES if hasattr(torch.optim, rule)])
@fuzzed(9)
@given(data=st.data(), dtype=st.sampled_from(list(DIGITS)), setting=settings)
def test_without_regularisation_it_is_torch(
    rule: str, data: st.DataObject, dtype: torch.dtype, setting: engine.Setting
) -> None:
    plan = data.draw(plans((dtype,), regularised=False, rule=rule))
    got, expected = fuzz.train(plan, setting), fuzz.train(plan, setting, library=torch.optim)
    for step, (one, other) in enumerate(zip(got, expected, strict=True)):
        engine.assert_close(without_stats(one), other, f"after step {step}", rtol=DIGITS[dtype])


# --- sums ---


@fuzzed(30)
@given(plan=plans(), setting=settings)
def test_stats_are_the_sums_in_float64(plan: Plan, setting: engine.Setting) -> None:
    for number, outcome in enumerate(fuzz.train(plan, setting)):
        expected = sums(plan, outcome, number)
        for name, wanted in expected.items():
            got = outcome[f"stats: {name}"].tolist()
            for one, other in zip(got, wanted, strict=True):
                close = math.isclose(one, other, rel_tol=1e-12) or (math.isnan(one) and math.isnan(other))
                assert close, f"{name} after step {number}: {got} instead of {wanted}"


def sums(plan: Plan, outcome: engine.Outcome, number: int) -> dict[str, list[float]]:
    weights = iter(engine.values_of(outcome, "weight"))
    place, found = 0, {"l1_norm": [], "squared_norm": [], "nonzeros": []}
    for group in plan.groups:
        listed = []
        for _ in group.params:
            weight = next(weights)
            if place not in plan.steps[number].missing:
                listed.append(real(weight))
            place += 1
        every = torch.cat([torch.zeros(0, dtype=torch.float64), *listed])
        found["l1_norm"].append(every.abs().sum().item())
        found["squared_norm"].append(every.square().sum().item())
        found["nonzeros"].append((every != 0).sum().item())
    return found


def real(tensor: Tensor) -> Tensor:
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return tensor.double().flatten()
