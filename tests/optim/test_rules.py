"""What is particular about single rules, beyond the formulas that tests/reference/test_rules.py and test_torch_parity.py compare."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regkernels
from regkernels import backends, optim
from tests.support import engine

pytestmark = pytest.mark.usefixtures("one_thread")

each_backend = pytest.mark.parametrize("backend", regkernels.info()["backends"])


# --- RMSprop ---


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@each_backend
def test_a_variance_below_zero_is_rounding(backend: str, dtype: torch.dtype, momentum: float) -> None:
    """With constant gradients the mean of squares and the square of the mean are one number; torch takes the root of what
    their rounding leaves."""
    gradient = torch.randn(50, dtype=dtype)
    options = {"lr": 1e-3, "alpha": 0.5, "eps": 1e-3, "centered": True, "momentum": momentum}
    weights = []
    for library in (optim, torch.optim):
        w = nn.Parameter(torch.zeros_like(gradient))
        optimizer = library.RMSprop([w], **options)
        with backends.use(backend):
            for _ in range(60):
                w.grad = gradient.clone()
                optimizer.step()
        weights.append(w.detach())
    assert weights[1].isnan().any(), "torch's are the reason for this test"
    assert weights[0].isfinite().all()
    assert torch.equal(weights[0].sign(), -gradient.sign())


@each_backend
def test_a_variance_that_is_not_a_number_stays_visible(backend: str) -> None:
    w = nn.Parameter(torch.zeros(3))
    optimizer = optim.RMSprop([w], centered=True)
    with backends.use(backend):
        for bad in (1.0, math.nan, 1.0):
            w.grad = torch.tensor([1.0, bad, 2.0])
            optimizer.step()
    assert w.isnan().tolist() == [False, True, False]


def test_rmsprops_buffers_come_and_go_with_the_options() -> None:
    """momentum and centered are options of a group; what they need is there when it is wanted, and kept in between."""
    w = nn.Parameter(torch.randn(5))
    optimizer = optim.RMSprop([w])
    names = []
    for momentum, centered in ((0.0, False), (0.9, False), (0.9, True), (0.0, True), (0.0, False), (0.5, True)):
        optimizer.param_groups[0].update(momentum=momentum, centered=centered)
        w.grad = torch.randn(5)
        optimizer.step()
        names.append(set(optimizer.state_dict()["state"][0]) - {"step", "square_avg"})
    every = {"momentum_buffer", "grad_avg"}
    assert names == [set(), {"momentum_buffer"}, every, every, every, every]
    assert optimizer.state[w]["step"] == 6 and w.isfinite().all()


@pytest.mark.parametrize(("momentum", "gain"), [(0.0, 1.0), (0.9, 10.0)])
def test_rmsprops_threshold_is_the_step_times_the_gain(momentum: float, gain: float) -> None:
    w = nn.Parameter(torch.tensor([1.0, -0.02, 0.0], dtype=torch.float64))
    w.grad = torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64)
    optim.RMSprop([w], lr=0.01, alpha=0.75, eps=0.5, momentum=momentum, l1=0.1).step()
    v = 0.25 * 4.0
    step = 0.01 / (math.sqrt(v) + 0.5)
    quiet = 0.01 / 0.5  # of elements without a gradient
    expected = [1 - step * 2 - gain * 0.1 * step, -max(0.02 - gain * 0.1 * quiet, 0.0), 0.0]
    torch.testing.assert_close(w.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=1e-17)


# --- Adagrad ---


@pytest.mark.parametrize("initial", [0.0, 0.1, 4.0])
@pytest.mark.parametrize("lr_decay", [0.0, 0.5])
@each_backend
def test_adagrad_with_a_constant_gradient(backend: str, lr_decay: float, initial: float) -> None:
    """In closed form: after n steps the sum is initial + n * g^2, and lr is lr / (1 + (n - 1) * lr_decay)."""
    g = torch.tensor([1.0, -3.0, 0.5], dtype=torch.float64)
    w = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = optim.Adagrad([w], lr=0.1, lr_decay=lr_decay, initial_accumulator_value=initial)
    with backends.use(backend):
        for _ in range(10):
            w.grad = g.clone()
            optimizer.step()
    rates = [0.1 / (1 + n * lr_decay) for n in range(10)]
    moved = [
        [rate * x / (math.sqrt(initial + (n + 1) * x * x) + 1e-10) for n, rate in enumerate(rates)] for x in g.tolist()
    ]
    torch.testing.assert_close(w.detach(), -torch.tensor([math.fsum(m) for m in moved], dtype=torch.float64))
    torch.testing.assert_close(optimizer.state[w]["sum"], initial + 10 * g * g)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64, torch.float64], ids=str)
def test_adagrads_sum_begins_with_the_value_of_its_group(dtype: torch.dtype) -> None:
    """Also of parameters that come late. Both parts of a complex one have it, as in torch."""
    params = [nn.Parameter(torch.ones(4, dtype=dtype)) for _ in range(3)]
    theirs = [nn.Parameter(torch.ones(4, dtype=dtype)) for _ in range(3)]
    for library, own in ((optim, params), (torch.optim, theirs)):
        groups = [{"params": own[:2]}, {"params": own[2:], "initial_accumulator_value": 0.5}]
        optimizer = library.Adagrad(groups if library is optim else own, lr=0.0, initial_accumulator_value=2.0)
        for count in (1, 3):
            for param in own[:count]:
                param.grad = torch.zeros_like(param)
            optimizer.step()
        if library is optim:
            ours = optimizer
    expected = optimizer.state[theirs[0]]["sum"]
    for param, factor in zip(params, (1.0, 1.0, 0.25), strict=True):
        assert torch.equal(ours.state[param]["sum"], (expected * factor).to(ours.state[param]["sum"].dtype))


# --- RAdam ---


@pytest.mark.parametrize("kind", ["floats", "tensors"])
def test_radam_before_the_variance_is_known(kind: str) -> None:
    """Momentum with the step lr for every element, whatever the size of its gradients; its prox with that step."""
    betas: Any = (0.5, 0.999) if kind == "floats" else tuple(torch.tensor([0.5, 0.999], dtype=torch.float64))
    w = nn.Parameter(torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64))
    g = torch.tensor([1e-3, 1.0, 100.0], dtype=torch.float64)
    optimizer = optim.RAdam([w], lr=1e-3, betas=betas, l1=0.25)
    for step in range(1, 9):
        before = w.detach().clone()
        w.grad = g.clone()
        optimizer.step()
        moved = before - w.detach()
        if step <= 5:
            torch.testing.assert_close(moved, 1e-3 * (g + 0.25), rtol=1e-10, atol=0)
        else:
            assert moved[2] < 0.02


@pytest.mark.parametrize("beta2", [0.0, 1 / 3, 0.5, 0.6])
def test_radam_that_never_knows_the_variance(beta2: float) -> None:
    """2 / (1 - beta2) - 1 is at most 5: of these, two make 0 of a denominator in the formula of the rectification."""
    w = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = optim.RAdam([w], lr=0.5, betas=(0.0, beta2))
    for _ in range(20):
        w.grad = torch.tensor([1.0, -2.0], dtype=torch.float64)
        optimizer.step()
    assert w.tolist() == [-10.0, 20.0]


# --- Lion ---

NO_METRIC = r'{}="prox" is not possible with Lion.*signs.*choose "decoupled"'


@pytest.mark.parametrize("strength", [0.0, 0.1])
@pytest.mark.parametrize("name", ["l1_mode", "weight_decay_mode"])
def test_lion_refuses_prox(name: str, strength: float) -> None:
    """As an argument, in a group, in one that is added, and where it is written into a group later."""
    text, options = NO_METRIC.format(name), {"l1": strength, "weight_decay": strength}
    params = [nn.Parameter(torch.ones(3)) for _ in range(3)]
    with pytest.raises(ValueError, match=text):
        optim.Lion(params, **{name: "prox"}, **options)
    with pytest.raises(ValueError, match=rf"(?s)(?=.*param group 1).*{text}"):
        optim.Lion([{"params": params[:1]}, {"params": params[1:], name: "prox"}], **options)
    optimizer = optim.Lion(params[:2], **options)
    with pytest.raises(ValueError, match=rf"(?s)(?=.*param group 1).*{text}"):
        optimizer.add_param_group({"params": params[2:], name: "prox"})
    assert len(optimizer.param_groups) == 1
    for param in params:
        param.grad = torch.ones(3)
    optimizer.step()
    before = engine.snapshot(optimizer)
    optimizer.param_groups[0][name] = "prox"
    with pytest.raises(ValueError, match=rf"(?s)(?=.*param group 0).*{text}"):
        optimizer.step()
    engine.assert_same(engine.snapshot(optimizer), before)
    optimizer.param_groups[0][name] = "decoupled"
    optimizer.step()
    packed = optimizer.state_dict()
    packed["param_groups"][0][name] = "prox"  # of another optimizer, say
    with pytest.raises(ValueError, match=text):
        optimizer.load_state_dict(packed)
    optimizer.step()


def test_lion_has_modes_of_its_own_by_default() -> None:
    group = optim.Lion([nn.Parameter(torch.ones(3))]).param_groups[0]
    assert group["l1_mode"] == group["weight_decay_mode"] == "decoupled"


@each_backend
def test_lions_threshold_makes_exact_zeros(backend: str) -> None:
    """Every element moves by lr and is then shrunk by lr * l1: 0.1 and 0.05."""
    w = nn.Parameter(torch.tensor([0.125, 0.1, -0.14, 0.16, 0.0, -0.3], dtype=torch.float64))
    w.grad = torch.tensor([1e-3, 50.0, -1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    optimizer = optim.Lion([w], lr=0.1, l1=0.5, stats=True)
    with backends.use(backend):
        optimizer.step()
    expected = torch.tensor([0.0, 0.0, 0.0, 0.01, 0.0, -0.35], dtype=torch.float64)
    torch.testing.assert_close(w.detach(), expected, rtol=1e-14, atol=1e-16)
    assert (w == 0).tolist() == [True, True, True, False, True, False] and not torch.signbit(w[w == 0]).any()
    assert optimizer.stats.nonzeros.tolist() == [2]


@pytest.mark.parametrize("start", [-1.0, 0.0, 3.0])
def test_lions_l1_above_1_is_stronger_than_any_gradient(start: float) -> None:
    w = nn.Parameter(torch.full((8,), start))
    optimizer = optim.Lion([w], lr=0.0625, l1=1.5)
    for _ in range(150):
        w.grad = torch.full_like(w, -1e6 if start >= 0 else 1e6)
        optimizer.step()
    assert (w == 0).all()


@each_backend
def test_lion_stands_still_where_nothing_pulls(backend: str) -> None:
    """The sign of 0 is 0, and of NaN NaN."""
    w = nn.Parameter(torch.ones(3))
    w.grad = torch.tensor([0.0, -0.0, math.nan])
    with backends.use(backend):
        optim.Lion([w], lr=0.1).step()
    assert w[:2].tolist() == [1.0, 1.0] and w[2].isnan()


def test_lion_refuses_complex_parameters() -> None:
    w: Tensor = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    w.grad = torch.ones_like(w)
    with pytest.raises(ValueError, match=r"parameter 0 of param group 0 is complex: Lion takes signs"):
        optim.Lion([w]).step()
    assert torch.equal(w, torch.ones_like(w))
