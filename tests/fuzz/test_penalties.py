"""Penalties of any numbers: values, slopes, curvatures and proximal operators against their definitions in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

import regkernels
from regkernels import prox, reference
from regkernels.table.formats import compute_dtype
from tests.fuzz import engine as fuzz
from tests.fuzz.profiles import fuzzed
from tests.fuzz.strategies import (
    SHAPES,
    VALUES,
    Parameter,
    of_any_size,
    parameters,
    positive_strengths,
    seeds,
    strengths,
)
from tests.support import cases, engine, group_cases, penalised
from tests.support.penalised import KEYS, PENALTIES

each = pytest.mark.parametrize("key", PENALTIES)
settings = st.sampled_from([*engine.kernels(threads=(1, 2)), engine.REFERENCE])


class Asked(NamedTuple):
    """A penalty of some tensors."""

    key: str
    strength: float
    shape: float
    tensors: tuple[Parameter, ...]
    seed: int

    def made(self) -> list[Tensor]:
        torch.manual_seed(self.seed)
        return [fuzz.values(tensor, tensor.layout) for tensor in self.tensors]


@st.composite
def asked(draw: st.DrawFn, key: str, values: tuple[str, ...] = VALUES) -> Asked:
    """Draws a penalty of a tensor of every dtype."""
    shape = draw(st.floats(*SHAPES[key])) if key in SHAPES else 1.0
    some = draw(st.tuples(*(parameters(st.just(dtype), values=values) for dtype in cases.DTYPES)))
    strength = draw(positive_strengths if draw(st.integers(0, 9)) else st.just(0.0))
    return Asked(key, strength, shape, some, draw(seeds))


def ours(of: Asked, tensors: list[Tensor], strength: Any) -> Tensor:
    function: Callable[..., Tensor] = getattr(regkernels, f"{of.key}_penalty")
    return function(tensors, strength, *([of.shape] if of.key in KEYS else []))


def rounding(dtype: torch.dtype) -> float:
    """Of the type that is computed in."""
    return torch.finfo(reference.compute_dtype(dtype)).eps


def as_computed(number: float, dtype: torch.dtype) -> float:
    return torch.tensor(number, dtype=torch.float64).to(reference.compute_dtype(dtype)).item()


# --- in the loss ---


@each
@fuzzed(10)
@given(data=st.data(), setting=settings)
def test_a_value_is_the_sum_of_its_terms(key: str, data: st.DataObject, setting: engine.Setting) -> None:
    of = data.draw(asked(key))
    tensors = of.made()[data.draw(st.integers(0, 3)) :]
    with engine.active(setting):
        value = ours(of, tensors, of.strength)
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    assert value.shape == () and value.dtype == (torch.float64 if wide else torch.float32)
    if of.strength == 0:
        assert value == 0
        return
    x = torch.cat([tensor.double().flatten() for tensor in tensors])
    terms = PENALTIES[of.key].value(x, of.strength, of.shape)
    exact = (of.strength * (x != 0).double() if of.key == "l0" else torch.where(x.isnan(), x, terms)).sum()
    expected = exact if wide else exact.float()
    assert math.isclose(value, expected, rel_tol=1e-12 if wide else 2e-7, abs_tol=1e-320 if wide else 2e-45) or (
        value.isnan() and expected.isnan()
    ), f"{value.item()!r} instead of {expected.item()!r}"


@each
@fuzzed(10)
@given(data=st.data(), upstream=st.floats(-3.0, 3.0), setting=settings)
def test_a_gradient_is_the_slope(key: str, data: st.DataObject, upstream: float, setting: engine.Setting) -> None:
    of = data.draw(asked(key))
    tensors = [tensor.detach().requires_grad_() for tensor in of.made()]
    with engine.active(setting):
        value = ours(of, tensors, of.strength)
        found = torch.autograd.grad(value, tensors, torch.full_like(value, upstream))
    for tensor, got in zip(tensors, found, strict=True):
        assert got.dtype == tensor.dtype and got.shape == tensor.shape
        x = tensor.detach().double()
        # What comes from above is rounded to the compute type: beside a float64 it may be too small for others.
        factor = torch.tensor(upstream, dtype=compute_dtype(tensor.dtype)).item()
        # At zero, where it jumps, it is 0.
        wanted = torch.where(x == 0, 0.0 * x, factor * PENALTIES[of.key].slope(x, of.strength, of.shape))
        wanted = torch.zeros_like(x) if of.key == "l0" else torch.where(x.isnan(), x, wanted)
        limit = torch.finfo(tensor.dtype)
        wanted = torch.where(wanted.abs() > limit.max, wanted.sign() * math.inf, wanted)
        # Of falling slopes a difference is left, and a kink may be an ulp away.
        scale = 20 * rounding(tensor.dtype) * (wanted.abs() + abs(upstream) * of.strength * (of.key in ("mcp", "scad")))
        error = (got.double() - wanted).abs()
        allowed = scale + limit.eps * wanted.abs() + limit.tiny
        fits = (error <= allowed) | (got == wanted) | (got.isnan() & wanted.isnan())
        assert fits.all(), (x[~fits][0], got[~fits][0], wanted[~fits][0])


@each
@fuzzed(4)
@given(data=st.data(), setting=settings)
def test_a_second_derivative_is_a_difference_of_slopes(key: str, data: st.DataObject, setting: engine.Setting) -> None:
    """Away from where a slope has a kink; at zero, where slopes jump, it is 0."""
    of = data.draw(asked(key, ("ordinary", "sparse")))
    assume(of.strength > 1e-3)
    tensors = [tensor.double().requires_grad_() for tensor in of.made()]
    directions = [torch.randn_like(tensor) for tensor in tensors]
    with engine.active(setting):
        slopes = torch.autograd.grad(ours(of, tensors, of.strength), tensors, create_graph=True)
        along = sum((slope * direction).sum() for slope, direction in zip(slopes, directions, strict=True))
        found = torch.autograd.grad(along, tensors, allow_unused=True, materialize_grads=True)
    slope = PENALTIES[of.key].slope
    for tensor, direction, got in zip(tensors, directions, found, strict=True):
        x = tensor.detach()
        h = 1e-6 * x.abs()
        kinks = torch.tensor(PENALTIES[of.key].kinks(of.strength, of.shape), dtype=torch.float64)
        smooth = ((x.abs()[..., None] - kinks).abs() > 1e-3 * x.abs()[..., None]).all(-1) & (x != 0)
        up, down = slope(x + h, of.strength, of.shape), slope(x - h, of.strength, of.shape)
        wanted = torch.where(smooth, direction * (up - down) / (2 * h), got)
        size = direction.abs() * up.abs() / h * 1e-15
        assert ((got - wanted).abs() <= 1e-5 * wanted.abs() + 100 * size + 1e-12)[smooth].all()
        if of.key != "huber":
            assert not got[x == 0].any()


# --- proximal operators ---


@st.composite
def operators(draw: st.DrawFn, key: str) -> tuple[Asked, float]:
    of = draw(asked(key))
    return of, draw(st.one_of(st.floats(0.01, 10.0), of_any_size(1e-9, 1e6), st.just(0.0)))


@each
@fuzzed(10)
@given(data=st.data(), setting=settings)
def test_operators_minimise(key: str, data: st.DataObject, setting: engine.Setting) -> None:
    """No point of a grid is better, beyond what rounding v and what is taken from it can make of the objective."""
    of, step = data.draw(operators(key))
    for v in of.made():
        with engine.active(setting):
            found = penalised.operator(of.key, v, of.strength, of.shape, step)
        assert found.dtype == v.dtype and found.shape == v.shape
        if of.strength == 0 or step == 0:
            engine.assert_same_bits(found, v.contiguous())
        else:
            assert_minimises(of, step, v, found)


def assert_minimises(of: Asked, step: float, v: Tensor, found: Tensor) -> None:
    ordinary, dtype = v.isfinite(), v.dtype
    engine.assert_same_bits(found[~ordinary], v[~ordinary])
    x, v = found.double()[ordinary], v.double()[ordinary]
    assert (x * v >= 0).all() and (x.abs() <= v.abs()).all()
    # What float32 makes of the numbers is what float32 minimises; of those at the ends of its range it can say nothing.
    numbers = [as_computed(number, dtype) for number in (of.strength, of.shape, step)]
    comfortable = (v.abs() < 1e15) & (v.abs() > 1e-15) & (min(numbers) > 1e-30)
    x, v = x[comfortable][:200], v[comfortable][:200]
    values = penalised.objective(of.key, v, *numbers)
    best = penalised.minimise(values, torch.minimum(v, 0 * v), torch.maximum(v, 0 * v), zooms=6, points=201)
    u = numbers[0] * numbers[2]
    excess = values(x[None])[0] - values(best[None])[0]
    allowed = 100 * rounding(dtype) * values(0 * v[None])[0].minimum(v * v + u)
    limits = torch.finfo(dtype)
    allowed += 4 * (limits.eps * v.abs().clamp(min=limits.tiny)) ** 2 * (1 + u)
    worse = excess > allowed + 1e-300
    assert not worse.any(), f"v = {v[worse][0].item()!r}: {x[worse][0].item()!r}, {best[worse][0].item()!r} is better"


@each
@fuzzed(10)
@given(data=st.data(), setting=st.sampled_from(engine.kernels(threads=(1, 2))))
def test_operators_have_the_references_bits(key: str, data: st.DataObject, setting: engine.Setting) -> None:
    of, step = data.draw(operators(key))
    for v in of.made():
        found = []
        for one, x in ((setting, v), (engine.REFERENCE, v.contiguous())):
            with engine.active(one):
                found.append(penalised.operator(of.key, x, of.strength, of.shape, step))
        engine.assert_same_bits(*found)


GROUPS = [groups for groups in group_cases.LAYOUTS if math.prod(groups.shape) < 700]


@fuzzed(30)
@given(
    groups=st.sampled_from(GROUPS),
    strength=positive_strengths,
    l1=strengths,
    weight=st.sampled_from(["sqrt_size", "ones"]),
    step=of_any_size(1e-6, 100.0),
    values=st.sampled_from(["ordinary", "sparse"]),
    seed=seeds,
    setting=settings,
)
def test_operators_of_groups(
    groups: group_cases.Groups,
    strength: float,
    l1: float,
    weight: str,
    step: float,
    values: str,
    seed: int,
    setting: engine.Setting,
) -> None:
    """Against the scalar solution, which `tests.support.group_cases` spells out group by group."""
    torch.manual_seed(seed)
    v = fuzz.values(Parameter(groups.shape, torch.float64, groups.layout, values=values), groups.layout)
    with engine.active(setting):
        found = prox.group_l1(v, strength, l1=l1, dim=groups.dim, size=groups.size, weight=weight, step=step)
    options = {"l1": l1, "group_l1": strength, "group_weight": weight}
    for mask in groups.masks() if v.numel() else ():
        torch.testing.assert_close(found[mask], group_cases.shrink(v[mask], step, options), rtol=1e-12, atol=1e-13)
