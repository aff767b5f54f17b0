"""What is said once of each penalty: that users read the same numbers, and what derivatives are where there are two."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regkernels
from regkernels import optim, prox
from regkernels.reference.family import FAMILY, SMALLEST, Elementwise, Shape
from tests.support import penalised

with_shape = pytest.mark.parametrize(
    "penalty", [p for p in FAMILY.values() if p.shape is not None], ids=lambda p: p.key
)
STRENGTH = 0.5


def functions(penalty: Elementwise) -> list[Any]:
    return [getattr(prox, penalty.key), getattr(regkernels, f"{penalty.key}_penalty")]


# --- what users read ---


@with_shape
def test_defaults_that_are_written_out_are_those_of_the_family(penalty: Elementwise) -> None:
    shape = penalty.shape
    for function in functions(penalty):
        assert inspect.signature(function).parameters[shape.name].default == shape.default
    says = re.search(
        rf"``{penalty.shape_key}`` \(([\d.]+)\)|``\|x\| = {penalty.shape_key}`` \(([\d.]+)\)", optim.Penalties.__doc__
    )
    assert says and float(says[1] or says[2]) == shape.default


def test_every_penalty_has_its_keys_operator_and_value() -> None:
    keys = {key for p in FAMILY.values() for key in (p.key, p.shape_key) if key}
    assert keys <= optim.Penalties.__annotations__.keys()
    for penalty in FAMILY.values():
        assert penalty.key in prox.__all__ and f"{penalty.key}_penalty" in regkernels.__all__
        for function in functions(penalty):
            others = inspect.signature(function).parameters.keys() - {"x", "params", "strength", "step"}
            assert others == ({penalty.shape.name} if penalty.shape else set())


@with_shape
def test_bounds_are_the_same_wherever_a_shape_is_given(penalty: Elementwise) -> None:
    """A magnitude of weights is compared with weights in float32: where it has no digits left there, the penalty is another one."""
    shape = penalty.shape
    smallest = (
        SMALLEST if shape.unit else torch.tensor(shape.above, dtype=torch.float64).nextafter(torch.tensor(1e3)).item()
    )
    below = torch.tensor(smallest, dtype=torch.float64).nextafter(torch.tensor(-1.0)).item()
    x = torch.ones(3)
    operator, value = functions(penalty)

    def uses(number: float) -> list[Any]:
        group = {"params": [nn.Parameter(x.clone())], penalty.key: 0.1, penalty.shape_key: number}
        return [
            lambda: operator(x, 0.1, **{shape.name: number}),
            lambda: value(x, 0.1, **{shape.name: number}),
            lambda: optim.SGD([group], lr=0.1),
        ]

    for use in uses(smallest):
        use()
    for number in (below, shape.above):
        for use in uses(number):
            with pytest.raises(ValueError, match=rf"{shape.name} must be .*, got {number}"):
                use()


def test_a_bound_in_words() -> None:
    assert Shape("a", 2.0, above=1.0).bound == "greater than 1"
    assert Shape("eps", 1.0, unit="weights").bound == "at least 1.18e-38, the smallest normal float32"


# --- derivatives at a kink ---

KINKS = {
    "mcp": (4.0, lambda lam, gamma: [gamma * lam]),
    "scad": (3.5, lambda lam, a: [lam, a * lam]),
    "huber": (0.75, lambda lam, delta: [delta]),
}
"""Magnitudes where the slope of a penalty has a kink, for a shape; with `STRENGTH` all of them are exact."""
BEYOND_ZERO = [p.key for p in FAMILY.values() if p.kink_at_zero]


def shaped(name: str, x: Tensor, strength: float, shape: float) -> Tensor:
    """The value in the loss."""
    penalty = FAMILY[name]
    return getattr(regkernels, f"{name}_penalty")(x, strength, *([shape] if penalty.shape else []))


def second_derivative(name: str, w: Tensor, shape: float) -> Tensor:
    w = w.clone().requires_grad_()
    (slope,) = torch.autograd.grad(shaped(name, w, STRENGTH, shape), w, create_graph=True)
    return torch.autograd.grad(slope.sum(), w)[0]


def limit_from_zero(function: Any, x: Tensor) -> Tensor:
    """The difference quotient between x and the next points towards zero."""
    step = 2.0**-20 * x
    return (function(x) - function(x - step)) / step


@pytest.mark.parametrize("name", KINKS)
def test_the_second_derivative_of_a_value_at_a_kink_is_its_limit_from_the_side_of_zero(name: str) -> None:
    """In the definition, by differences of its slope."""
    shape, kinks = KINKS[name]
    x = torch.tensor(kinks(STRENGTH, shape), dtype=torch.float64)
    x = torch.cat([x, -x])
    expected = limit_from_zero(lambda x: penalised.PENALTIES[name].slope(x, STRENGTH, shape), x)
    torch.testing.assert_close(second_derivative(name, x, shape), expected, rtol=1e-6, atol=1e-8)
    learned = torch.tensor(STRENGTH, dtype=torch.float64, requires_grad=True)
    w = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(shaped(name, w, learned, shape), w, create_graph=True)  # type: ignore[arg-type]
    torch.testing.assert_close(torch.autograd.grad(slope.sum(), w)[0], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", KINKS)
def test_the_derivative_of_an_operator_at_a_kink_is_its_limit_from_the_side_of_zero(name: str) -> None:
    """By differences of minimisers that are found by brute force; and by the value's second derivative, which is the same one."""
    shape, kinks = KINKS[name]
    for step in (0.25, 1.0):
        x = torch.tensor(kinks(STRENGTH, shape), dtype=torch.float64)
        x = torch.cat([x, -x])
        v = x + step * penalised.PENALTIES[name].slope(x, STRENGTH, shape)
        assert torch.equal(penalised.operator(name, v, STRENGTH, shape, step), x)
        w = v.clone().requires_grad_()
        penalised.operator(name, w, STRENGTH, shape, step).sum().backward()

        def minimiser(v: Tensor, step: float = step) -> Tensor:
            low, high = torch.minimum(v, torch.zeros_like(v)), torch.maximum(v, torch.zeros_like(v))
            return penalised.minimise(penalised.objective(name, v, STRENGTH, shape, step), low, high)

        h = 1e-3 * v
        quotient = (minimiser(v) - minimiser(v - h)) / h
        torch.testing.assert_close(w.grad, quotient, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(w.grad, 1 / (1 + step * second_derivative(name, x, shape)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", BEYOND_ZERO)
def test_a_weight_of_zero_is_held_by_all_derivatives(name: str) -> None:
    """The slope jumps there, between limits of opposite signs: what is returned is 0, of the operator, too, which holds zeros."""
    zeros = torch.tensor([0.0, -0.0], dtype=torch.float64)
    shape = penalised.PENALTIES[name].shape
    assert not second_derivative(name, zeros, shape).any()
    v = zeros.clone().requires_grad_()
    penalised.operator(name, v, STRENGTH, shape, 0.5).sum().backward()
    assert not v.grad.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_beyond_a_hard_threshold_the_derivative_is_one(dtype: torch.dtype) -> None:
    """With a step for which nothing but zero and the constant part can be a minimum, also in the last place beside the kink."""
    for name, shape, step in (("mcp", 1.9, 1.9), ("mcp", 1.9, 1.95), ("mcp", 3.0, 7.0), ("scad", 3.7, 2.7)):
        for strength in (0.3, 0.7, 1.1):
            near = torch.tensor([strength, shape * strength, strength * (shape * step) ** 0.5], dtype=dtype)[:, None]
            v = (near * (1 + torch.finfo(dtype).eps * torch.arange(-8, 9, dtype=dtype))).flatten().requires_grad_()
            x = penalised.operator(name, v, strength, shape, step)
            x.sum().backward()
            assert ((v.grad == 1) | (v.grad == 0)).all() and torch.equal(v.grad != 0, x != 0)
