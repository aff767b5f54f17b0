"""Penalties and proximal operators under torch.func, forward-mode differentiation and make_fx: plain torch's values and derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import regkernels as rk
from regkernels import prox
from tests.support.differentiated import ANY, FACTORS, OF_VALUES, OPERATORS, STRENGTH, VALUES, T, row_norms, sample


@pytest.mark.parametrize("name", VALUES)
def test_penalties(name: str) -> None:
    ours, theirs = VALUES[name]
    for transform, made in (ANY | OF_VALUES).items():
        expected = made(lambda x: theirs(STRENGTH, x) + 0 * x.sum())  # of what is constant autograd would not say 0
        actual = made(lambda x: ours(x, STRENGTH))
        torch.testing.assert_close(
            actual, expected, rtol=1e-9, atol=1e-11, msg=lambda text, of=transform: f"{of}: {text}"
        )


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name: str) -> None:
    ours, theirs = OPERATORS[name]
    for transform, made in ANY.items():
        actual, expected = made(ours), made(theirs)
        torch.testing.assert_close(
            actual, expected, rtol=1e-9, atol=1e-11, msg=lambda text, of=transform: f"{of}: {text}"
        )


@pytest.mark.parametrize("name", VALUES)
def test_strengths(name: str) -> None:
    ours, theirs = VALUES[name]
    x, s = sample(3, 4), torch.tensor([0.2, 0.37, 1.1], dtype=torch.float64)
    torch.testing.assert_close(vmap(lambda s: ours(x, s))(s), vmap(lambda s: theirs(s, x))(s))
    torch.testing.assert_close(vmap(grad(lambda s: ours(x, s)))(s), vmap(grad(lambda s: theirs(s, x)))(s))
    torch.testing.assert_close(
        jvp(lambda s: ours(x, s), (s[0],), (s[1],)), jvp(lambda s: theirs(s, x), (s[0],), (s[1],))
    )
    with pytest.raises(ValueError, match=r"must be >= 0, got -0\.5"):
        vmap(lambda s: ours(x, s))(torch.tensor([0.5, -0.5]))


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_in_fewer_bits(name: str) -> None:
    ours, _ = OPERATORS[name]
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x = sample(3, 4).to(dtype)
        value, change = jvp(ours, (x,), (torch.ones_like(x),))
        assert value.dtype == change.dtype == dtype
        torch.testing.assert_close(value, ours(x))  # norms of groups may differ by an ulp


@pytest.mark.parametrize("name", VALUES)
def test_penalties_in_fewer_bits(name: str) -> None:
    ours, theirs = VALUES[name]
    x = sample(3, 4).to(torch.bfloat16)
    slope, value = torch.func.grad_and_value(lambda x: ours(x, STRENGTH))(x)
    assert value.dtype == torch.float32 and slope.dtype == torch.bfloat16
    torch.testing.assert_close(value.double(), theirs(STRENGTH, x.double()), rtol=1e-6, atol=0)
    own = x.clone().requires_grad_()
    ours(own, STRENGTH).backward()
    torch.testing.assert_close(slope, own.grad)


# --- where formulas are not smooth, or numbers not finite: as without transforms ---

SPECIAL = torch.tensor([[0.0, -0.0, 1.0, -2.0], [0.0, 0.0, 0.0, 0.0], [math.inf, 0.5, -math.inf, 0.0]]).double()


@pytest.mark.parametrize("strength", [STRENGTH, 0.0])
@pytest.mark.parametrize("name", VALUES)
def test_special_values(name: str, strength: float) -> None:
    ours, _ = VALUES[name]
    finite = SPECIAL.nan_to_num(posinf=3.0, neginf=-3.0)
    norms = name in ("rows", "columns", "tensor")  # whose gradients are NaN at infinity
    for special in (finite,) if norms else (finite, SPECIAL):
        x = special.clone().requires_grad_()
        expected = ours(x, strength)
        expected.backward()
        slope, value = torch.func.grad_and_value(lambda x: ours(x, strength))(special)
        torch.testing.assert_close(value, expected.detach(), equal_nan=True)
        torch.testing.assert_close(slope, x.grad, equal_nan=True)
        if special is finite:
            torch.testing.assert_close(jacfwd(lambda x: ours(x, strength))(special), x.grad)


@pytest.mark.parametrize("name", VALUES)
def test_second_derivatives_at_zero(name: str) -> None:
    ours, _ = VALUES[name]
    x = SPECIAL[:2].clone().requires_grad_()
    if name == "weighted":
        x = torch.cat([SPECIAL[:2], SPECIAL[:1]]).requires_grad_()
    elif name in ("rows", "columns", "tensor"):
        x = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(ours(x, STRENGTH), x, create_graph=True)
    (expected,) = torch.autograd.grad(slope.sum(), x) if slope.requires_grad else (torch.zeros_like(x),)
    found = hessian(lambda x: ours(x, STRENGTH))(x.detach()).sum((0, 1))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", OPERATORS)
def test_special_values_of_operators(name: str) -> None:
    ours, _ = OPERATORS[name]
    finite = SPECIAL.clone().nan_to_num(posinf=3.0, neginf=-3.0).requires_grad_()
    expected = ours(finite)
    (slope,) = torch.autograd.grad(expected.sum(), finite)
    value, change = jvp(ours, (finite.detach(),), (T,))
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(change.sum(), (slope * T).sum())
    torch.testing.assert_close(jacrev(lambda x: ours(x).sum())(finite.detach()), slope)
    for special in (SPECIAL, torch.full((3, 4), math.nan, dtype=torch.float64)):
        torch.testing.assert_close(vmap(ours)(special[None])[0], ours(special), equal_nan=True)


def test_a_ball_holds_nothing_within_it() -> None:
    """The projection onto a ball is the identity inside, at 0, too."""
    x = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(prox.max_norm(x, 1.0).sum(), x)
    assert torch.equal(slope, torch.ones_like(x))


def test_a_weight_of_zero_holds_nothing() -> None:
    x, weights = torch.zeros(2, dtype=torch.float64, requires_grad=True), torch.tensor([0.0, 1.0], dtype=torch.float64)
    (slope,) = torch.autograd.grad(prox.weighted_l1(x, 0.5, weights).sum(), x)
    assert slope.tolist() == [1.0, 0.0]
    assert jvp(lambda x: prox.weighted_l1(x, 0.5, weights), (x.detach(),), (x.detach() + 1,))[1].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_twice_differentiable(name: str) -> None:
    ours, theirs = OPERATORS[name]
    found = []
    for function in (ours, theirs):
        x = sample(3, 4).requires_grad_()
        (slope,) = torch.autograd.grad((function(x) * T).sum(), x, create_graph=True)
        slope = slope + 0 * x
        found.append(torch.autograd.grad((slope * T.flip(1)).sum(), x)[0])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)


# --- factors ---


def test_tangents_and_batches_of_factors() -> None:
    x, change = sample(3, 4), sample(2, 3, 4).abs()
    _, tangent = jvp(lambda a: rk.l1_penalty(x, 0.3, a), (FACTORS,), (T,))
    torch.testing.assert_close(tangent, 0.3 * (T * x.abs()).sum())
    _, tangent = jvp(lambda a: prox.weighted_l1(x, 0.3, a), (FACTORS,), (T,))
    torch.testing.assert_close(tangent, -0.3 * T * x.sign() * (x.abs() > 0.3 * FACTORS))
    torch.testing.assert_close(vmap(lambda a: rk.l1_penalty(x, 0.3, a))(change), 0.3 * (change * x.abs()).sum((1, 2)))
    torch.testing.assert_close(
        vmap(lambda a: prox.weighted_l1(x, 0.3, a))(change), x.sign() * (x.abs() - 0.3 * change).relu()
    )
    for function in (
        lambda a: rk.l1_penalty(x, 0.3, a),
        lambda a: prox.weighted_l1(x, 0.3, a),
    ):
        with pytest.raises(ValueError, match="weights"):
            vmap(function)(torch.stack([FACTORS, -FACTORS]))
        with pytest.raises(ValueError, match=r"weights.* requires a gradient.*detach\(\)"):
            grad(lambda a, function=function: function(a).sum())(FACTORS)


# --- in place ---


def test_in_place() -> None:
    expected = prox.soft_threshold(sample(2, 3, 4), 0.3)
    assert torch.equal(vmap(lambda x: prox.soft_threshold_(x * 1, 0.3))(sample(2, 3, 4)), expected)
    x = sample(2, 3, 4)
    vmap(lambda x: prox.soft_threshold_(x, 0.3))(x)
    assert torch.equal(x, expected)
    value, tangent = jvp(lambda x: prox.soft_threshold_(x * 2, 0.3), (sample(3, 4),), (T,))
    assert torch.equal(value, prox.soft_threshold(sample(3, 4) * 2, 0.3))
    torch.testing.assert_close(tangent, 2 * T * (value != 0))
    with pytest.raises(RuntimeError, match=r"within torch\.no_grad\(\), or use soft_threshold"):
        grad(lambda x: prox.soft_threshold_(x * 2, 0.3).sum())(sample(3, 4))


# --- modules ---


class Net(nn.Module):
    """With its penalties in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).square().sum() + rk.l1_penalty(self, 0.1) + rk.group_l1_penalty(self, 0.2)


def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
    weight, bias = params["layer.weight"], params["layer.bias"]
    penalties = 0.1 * (weight.abs().sum() + bias.abs().sum()) + 0.2 * (2 * row_norms(weight).sum() + bias.abs().sum())
    return torch.nn.functional.linear(x, weight, bias).square().sum() + penalties


@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp", "vmap of grad", "plain"])
def test_functional_calls(transform: str) -> None:
    model = Net().double()
    params = {key: value.detach().clone() for key, value in model.named_parameters()}
    several = {key: torch.stack([value, 2 * value + 0.01]) for key, value in params.items()}
    x = sample(2, 4)
    made: dict[str, Callable[[Any], Any]] = {
        "grad": lambda f: grad(f)(params),
        "vmap": lambda f: vmap(f)(several),
        "jvp": lambda f: jvp(f, (params,), ({key: torch.ones_like(value) for key, value in params.items()},)),
        "vmap of grad": lambda f: vmap(grad(f))(several),
        "plain": lambda f: f(params),
    }
    actual = made[transform](lambda params: functional_call(model, params, (x,)))
    torch.testing.assert_close(actual, made[transform](lambda params: loss(params, x)))


def test_several_tensors_of_which_some_are_batched() -> None:
    x, y = sample(2, 3, 4), sample(3)
    found = vmap(lambda x: rk.elastic_net_penalty([x, y, x], 0.1, 0.2))(x)
    expected = 0.1 * (x.abs().sum((1, 2)) + y.abs().sum()) + 0.2 * (x.square().sum((1, 2)) + y.square().sum())
    torch.testing.assert_close(found, expected)
    (slope,) = vjp(lambda x: rk.elastic_net_penalty([x, y], 0.1, 0.2), x)[1](torch.tensor(3.0, dtype=torch.float64))
    torch.testing.assert_close(slope, 3 * (0.1 * x.sign() + 0.4 * x))


# --- traced and compiled ---


MODES = ["real", "fake", "symbolic"]
TRACED = ["elastic net", "weighted", "rows", "scad penalty", "weighted_l1", "log_sum", "group_l1", "soft_threshold"]


@pytest.mark.parametrize(("name", "mode"), [*zip(TRACED, 3 * MODES, strict=False), ("rows", "fake"), ("rows", "real")])
def test_make_fx(name: str, mode: str) -> None:
    def function(x: Tensor) -> Tensor:
        return VALUES[name][0](x, STRENGTH) if name in VALUES else OPERATORS[name][0](x)

    other = sample(3, 4).flip(1)
    graph = make_fx(function, tracing_mode=mode)(sample(3, 4))
    assert torch.equal(graph(other), function(other))
    slope = make_fx(grad(lambda x: function(x).sum()), tracing_mode=mode)(sample(3, 4))
    torch.testing.assert_close(slope(other), grad(lambda x: function(x).sum())(other))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", ["weighted", "rows"])
def test_compiled_transforms(name: str) -> None:
    ours, _ = VALUES[name]
    function = grad(lambda x: ours(x, STRENGTH))
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(sample(3, 4)), function(sample(3, 4)))
    compiled = torch.compile(vmap(function), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(sample(2, 3, 4)), vmap(function)(sample(2, 3, 4)))


@pytest.mark.parametrize("name", ["l0", "l_half", "log_sum"])
def test_linearized_roots(name: str) -> None:
    """Whose tracing hides which values a function of numpy reads."""
    x, operator = torch.tensor([2.0, 0.1], dtype=torch.float64), getattr(prox, name)
    value, linear = torch.func.linearize(lambda v: operator(v, 0.3), x)
    expected, change = jvp(lambda v: operator(v, 0.3), (x,), (torch.ones_like(x),))
    assert torch.equal(value, expected)
    torch.testing.assert_close(linear(torch.ones_like(x)), change, rtol=1e-14, atol=0)
