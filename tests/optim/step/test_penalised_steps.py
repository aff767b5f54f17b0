"""What a step makes of a weight with a penalty: by `regkernels.prox`, by brute force, and by scalars from the sources."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regkernels
from regkernels import optim, prox
from tests.reference.test_operators import assert_minimises
from tests.support import cases, engine, penalised
from tests.support.penalised import PENALTIES

pytestmark = pytest.mark.interpreted

STEPS = (1e-3, 0.7, 5.0)  # below and above what is convex


@pytest.fixture(autouse=True, params=regkernels.info()["backends"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with regkernels.backends.use(request.param):
        yield request.param


def stepped(v: Tensor, make: Any = optim.SGD, gradient: Tensor | None = None, steps: int = 1, **options: Any) -> Tensor:
    """``v`` after steps with one gradient, of zero where there is none."""
    w = nn.Parameter(v.clone())
    optimizer = make([w], **options)
    for _ in range(steps):
        w.grad = torch.zeros_like(v) if gradient is None else gradient.clone()
        optimizer.step()
    return w.detach()


# --- the step is the operator ---


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_sgd_at_rest_is_the_operator(dtype: torch.dtype) -> None:
    v = torch.cat([torch.randn(1025).to(dtype) * 2, cases.special_values(dtype)])
    weights = torch.rand(len(v), dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    for t in STEPS:
        expected = {
            **{
                name: (penalised.options(name, 0.4, 1.7), penalised.operator(name, v, 0.4, 1.7, t))
                for name in PENALTIES
            },
            "weighted": ({"l1": 0.4, "l1_weights": [weights]}, prox.weighted_l1(v, 0.4, weights, step=t)),
            "positive": ({"l1": 0.4, "positive": True}, prox.positive(v, 0.4, step=t)),
            "box": ({"box": (-0.3, 1.2)}, prox.box(v, -0.3, 1.2)),
            "elastic net": (
                {"l1": 0.4, "weight_decay": 0.3, "weight_decay_mode": "prox"},
                prox.elastic_net(v, 0.4, 0.3, step=t),
            ),
        }
        for name, (options, operated) in expected.items():
            engine.assert_same_bits(stepped(v, lr=t, **options), operated, f"{name}, {t}")


def test_momentum_shrinks_by_its_gain() -> None:
    v = torch.randn(300, dtype=torch.float64)
    for momentum, dampening in ((0.75, 0.0), (0.5, 0.25)):
        gain = (1 - dampening) / (1 - momentum)
        for name in PENALTIES:
            shrunk = stepped(v, lr=0.25, momentum=momentum, dampening=dampening, **penalised.options(name, 0.3, 1.7))
            assert torch.equal(shrunk, penalised.operator(name, v, 0.3, 1.7, 0.25 * gain)), name
            if momentum == 0.75:
                shrunk = stepped(
                    v, optim.RMSprop, lr=0.25, momentum=momentum, eps=1.0, **penalised.options(name, 0.3, 1.7)
                )
                assert torch.equal(shrunk, penalised.operator(name, v, 0.3, 1.7, 1.0)), name


@pytest.mark.parametrize("name", PENALTIES)
def test_adaptive_steps_are_the_metric(name: str) -> None:
    """The operator with each element's own step, computed here from the gradient."""
    v = torch.randn(400, dtype=torch.float64)
    g = torch.tensor([0.03, -0.4, 1.1, 7.0], dtype=torch.float64).repeat_interleave(100)
    lr, eps, lam, shape = 0.3, 0.2, 0.4, 1.7
    steps = {
        optim.Adam: lr / (g.abs() + eps),  # bias correction makes the first moments g and g^2
        optim.RMSprop: lr / ((0.01 * g**2).sqrt() + eps),
        optim.Adagrad: lr / (g.abs() + eps),
    }
    for make, s in steps.items():
        got = stepped(v, make, g, lr=lr, eps=eps, shrink_limit=None, **penalised.options(name, lam, shape))
        z = v - s * g
        parts = [penalised.operator(name, z[i : i + 100], lam, shape, s[i].item()) for i in range(0, 400, 100)]
        expected = torch.cat(parts)
        assert ((got - expected).abs() <= 1e-13 * (1 + z.abs())).sum() >= len(v) - 1, make  # the one may sit at a jump


# --- together with decay and bounds ---


@pytest.mark.parametrize("t", STEPS)
@pytest.mark.parametrize("name", PENALTIES)
def test_proximal_decay_joins_the_penalty(name: str, t: float) -> None:
    v = torch.linspace(-8, 8, 301, dtype=torch.float64)
    for lam, shape, decay in ((0.4, 2.3, 0.7), (1.5, 1.3, 3.0)):
        options = {**penalised.options(name, lam, shape), "weight_decay": decay, "weight_decay_mode": "prox"}
        values = penalised.objective(name, v, lam, shape, t, decay)
        assert_minimises(stepped(v, lr=t, **options), values, v, 1e-14)
        # The same through the metric of an adaptive rule: with second moments of 0 its step is lr / eps.
        assert_minimises(stepped(v, optim.AdamW, lr=t / 4, eps=0.25, shrink_limit=None, **options), values, v, 1e-14)


@pytest.mark.parametrize("t", STEPS)
@pytest.mark.parametrize("name", PENALTIES)
def test_bounds_are_minimised_under(name: str, t: float) -> None:
    v = torch.linspace(-8, 8, 301, dtype=torch.float64)
    boxes = [(-math.inf, math.inf, True)]
    boxes += [(-0.5, 1.7, False), (0.3, 2.0, False), (-1.0, 0.5, True)] if name in ("l1", "huber") else []
    for low, high, positive in boxes:
        bounds = {"box": (low, high), "positive": positive} if high < math.inf else {"positive": positive}
        x = stepped(v, lr=t, **penalised.options(name, 0.4, 1.3), **bounds)
        low = max(low, 0.0) if positive else low
        assert ((x >= low) & (x <= high)).all() and not x[x == 0].signbit().any()
        values = penalised.objective(name, v, 0.4, 1.3, t)
        lowest = torch.full_like(v, max(low, -9.0))
        best = penalised.minimise(values, lowest, torch.full_like(v, min(high, 9.0)))
        assert ((values(x[None]) - values(best[None]))[0] <= 1e-13 * (1 + v**2)).all()


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_bounds_hold_in_every_format(dtype: torch.dtype) -> None:
    """Half-precision weights are rounded after they were bounded: by chance, a bound between two numbers could be left."""
    v, g = torch.randn(2000).to(dtype), torch.randn(2000).to(dtype)
    for rounding in ("nearest", "stochastic"):
        x = stepped(v, optim.Adam, g, lr=0.3, positive=True, param_rounding=rounding, steps=3)
        assert (x >= 0).all() and (x == 0).any() and (x > 0).any()
        x = stepped(v, optim.Adam, g, lr=0.3, box=(-0.25, 0.5), param_rounding=rounding, steps=3)
        assert x.min() == -0.25 and x.max() == 0.5


# --- cautious decay ---


@pytest.mark.parametrize("rule", [rule for rule in cases.RULES if not rule.endswith("maximize")])
def test_cautious_decay_is_decay_where_it_agrees_with_the_step(rule: str) -> None:
    """Chen et al. (2025): w - step - lr * decay * w * [step * w >= 0], with the step that the rule makes without decay."""
    v = torch.cat([torch.randn(200, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)])
    gradients = [torch.randn(203, dtype=torch.float64) * (torch.arange(203) % 7 > 0) for _ in range(3)]
    lr, decay = 0.03, 0.4
    w, free = nn.Parameter(v.clone()), nn.Parameter(v.clone())
    constant = {"lr_decay": 0.0} if rule == "adagrad" else {}
    cautious = engine.make(rule, [w], lr=lr, weight_decay=decay, weight_decay_mode="cautious", **constant)
    plain = engine.make(rule, [free], lr=lr, weight_decay=0.0, **constant)
    agreed = 0
    for gradient in gradients:
        before = w.detach().clone()
        with torch.no_grad():
            free.copy_(before)
        w.grad, free.grad = gradient.clone(), gradient.clone()
        cautious.step(), plain.step()
        move = before - free.detach()
        agrees = move * before >= 0
        expected = before - move - torch.where(agrees, lr * decay * before, torch.zeros_like(before))
        torch.testing.assert_close(w.detach(), expected, rtol=1e-13, atol=1e-14)
        agreed += int(agrees.sum())
    assert 100 < agreed < 500


def test_cautious_decay_with_a_penalty_comes_before_it() -> None:
    v, g = torch.randn(500, dtype=torch.float64), torch.randn(500, dtype=torch.float64)
    decayed = torch.where(g * v >= 0, v * (1 - 0.1 * 0.5), v) - 0.1 * g
    for name in PENALTIES:
        options = {**penalised.options(name, 0.3, 1.7), "weight_decay": 0.5, "weight_decay_mode": "cautious"}
        got = stepped(v, gradient=g, lr=0.1, **options)
        assert torch.equal(got, penalised.operator(name, decayed, 0.3, 1.7, 0.1)), name
