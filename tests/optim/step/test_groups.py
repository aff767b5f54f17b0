"""Penalties and constraints by groups: their mathematics, and values at the edges."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

import regkernels as rk
from regkernels import reference
from regkernels.table.grouping import GroupLayout
from tests.support import cases, engine
from tests.support.group_cases import LAYOUTS, PENALTIES, RULES, WITH_METRIC, Groups, expected

WRITTEN_OUT = [rule for rule in WITH_METRIC if cases.RULES[rule][0] in RULES]
SETTINGS = [engine.REFERENCE, engine.kernels(threads=(2,))[-1]]
PROX = {**cases.STRENGTHS, "weight_decay_mode": "prox"}

each_layout = pytest.mark.parametrize("groups", LAYOUTS, ids=str)
each_penalty = pytest.mark.parametrize("penalty", PENALTIES)


def one_step(weight: Tensor, gradient: Tensor, setting: engine.Setting, rule: str = "sgd", **options: Any) -> Tensor:
    """The weight after a step. Off is what ``options`` leave out."""
    param = nn.Parameter(weight.clone())
    param.grad = gradient.clone()
    with engine.active(setting):
        engine.make(rule, [param], **{"lr": 1.0, "weight_decay": 0.0, **options}).step()
    return param.detach()


# --- the mathematics ---


@each_penalty
@pytest.mark.parametrize("rule", WRITTEN_OUT)
def test_every_rule_does_what_loops_over_groups_do(rule: str, penalty: str) -> None:
    turn = list(PENALTIES).index(penalty) + WRITTEN_OUT.index(rule)
    for groups in LAYOUTS[turn % 3 :: 3]:
        weight, gradients = groups.tensor(), [groups.tensor() for _ in range(3)]
        options = {**PROX, "lr": 0.1, **PENALTIES[penalty]}
        right = expected(rule, groups, weight, gradients, options)
        for setting in SETTINGS:
            param = nn.Parameter(weight.clone(memory_format=torch.preserve_format))
            with engine.active(setting):
                optimizer = engine.make(rule, [param], **options, **groups.options)
                for gradient in gradients:
                    param.grad = gradient
                    optimizer.step()
            note = f"{groups}, {setting}"
            torch.testing.assert_close(param.detach(), right, rtol=1e-12, atol=1e-13, msg=lambda m, n=note: f"{n}: {m}")
            assert not right.numel() or torch.equal(param.detach() == 0, right == 0), note


@each_layout
def test_groups_are_exactly_zero_and_counted(groups: Groups) -> None:
    weight, gradient = groups.tensor(torch.float32), torch.zeros(groups.shape)
    masks = [mask for mask in groups.masks() if mask.any()]
    norms = torch.stack([weight[mask].norm() for mask in masks]) if masks else torch.zeros(0)
    bound = norms.median().item() if masks else 1.0
    for setting in SETTINGS:
        param = nn.Parameter(weight.clone(memory_format=torch.preserve_format))
        param.grad = gradient
        with engine.active(setting):
            options = {"group_l1": bound * 1.0001, "group_weight": "ones", **groups.options}
            optimizer = rk.optim.SGD([param], lr=1.0, stats=True, **options)
            optimizer.step()
        zero = [bool((param[mask] == 0).all()) for mask in masks]
        assert zero == (norms <= bound * 1.0001).tolist()
        assert all(zero[i] or bool((param[mask] != 0).all()) for i, mask in enumerate(masks))
        assert optimizer.stats is not None and optimizer.stats.zero_groups.tolist() == [sum(zero)]


def objective(x: Tensor, z: Tensor, t: float, o: dict[str, Any]) -> Tensor:
    penalty = o["l1"] * x.abs().sum() + o["group_l1"] * x.norm() + o["weight_decay"] / 2 * (x * x).sum()
    return ((x - z) ** 2).sum() / 2 + t * penalty


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("max_norm", [None, 0.7])
def test_a_step_is_the_proximal_operator_of_everything_at_once(max_norm: float | None, positive: bool) -> None:
    """By a solver that knows nothing of closed forms. The objective is strongly convex: half the squared distance to the
    minimiser is not more than what is missing to the minimum."""
    options = {"l1": 0.15, "group_l1": 0.4, "weight_decay": 0.3, "group_weight": "ones"}
    lr, zeros = 0.9, 0
    for scale in (0.2, 0.6, 1.0, 2.0, 4.0):
        z = scale * torch.randn(4, dtype=torch.float64)
        step = {
            **options,
            "max_norm": max_norm,
            "positive": positive,
            "group_dim": "tensor",
            "weight_decay_mode": "prox",
        }
        x = one_step(z, torch.zeros_like(z), SETTINGS[-1], lr=lr, **step)

        def split(parts: Any) -> Tensor:  # x = p - n with p, n >= 0: smooth within the bounds
            p, n = torch.as_tensor(parts, dtype=torch.float64).view(2, 4)
            return p - n

        def value(parts: Any, z: Tensor = z) -> float:
            penalties = {**options, "l1": 0.0}
            return float(objective(split(parts), z, lr, penalties)) + lr * options["l1"] * float(sum(parts))

        ball = {"type": "ineq", "fun": lambda parts: max_norm**2 - float((split(parts) ** 2).sum())}
        bounds = [(0, None)] * 4 + [(0, 0.0 if positive else None)] * 4
        starts = [[0.5] * 4 + [0.0 if positive else 0.1] * 4, [*z.clamp(min=0.01), *(-z).clamp(min=0)]]
        found = [
            minimize(value, start, method="SLSQP", bounds=bounds, constraints=[ball] if max_norm else [], tol=1e-14)
            for start in starts
        ]
        best = min(result.fun for result in found)
        mine = float(objective(x, z, lr, options))
        assert mine <= best + 1e-7
        assert (not positive or (x >= 0).all()) and (max_norm is None or x.norm() <= max_norm * (1 + 1e-15))
        zeros += int((x == 0).sum())
    assert 0 < zeros < 20


def test_one_number_per_group_is_a_step_size() -> None:
    """Two groups with very different gradients: each has the root of its own mean square."""
    weight, gradient = torch.zeros(2, 4, dtype=torch.float64), torch.tensor([[1.0, 2, 3, 4], [10, 20, 30, 40]]).double()
    for setting in SETTINGS:
        after = one_step(weight, gradient, setting, "adam", lr=0.1, eps=0.0, max_norm=1e6)
        root = (gradient**2).mean(1, keepdim=True).sqrt()
        torch.testing.assert_close(after, -0.1 * gradient / root, rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_norms_of_constrained_groups(dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    weight = torch.randn(50, 40).to(dtype) * torch.logspace(-6, 6, 50).to(dtype)[:, None]
    weight[7] = 0
    for setting in SETTINGS:
        bounded = one_step(weight, torch.zeros_like(weight), setting, max_norm=0.5)
        within = weight.double().norm(dim=1) <= 0.5
        assert torch.equal(bounded[within], weight[within]) and 10 < within.sum() < 40
        norms = bounded.double().norm(dim=1)[~within]
        assert (norms - 0.5).abs().max() <= 0.5 * 2 * eps
        unit = one_step(weight, torch.zeros_like(weight), setting, unit_norm=True)
        assert torch.equal(unit[7], torch.zeros(40, dtype=dtype))
        rest = torch.arange(50) != 7
        assert (unit.double().norm(dim=1)[rest] - 1).abs().max() <= 2 * eps


# --- values at the edges ---


@pytest.mark.parametrize("options", [{"group_l1": 0.5}, {"max_norm": 1.0}, {"unit_norm": True}], ids=str)
def test_a_nan_takes_its_group_and_no_other(options: dict[str, Any]) -> None:
    weight = torch.randn(4, 50)
    weight[2, 7] = math.nan
    for setting in SETTINGS:
        after = one_step(weight, torch.zeros_like(weight), setting, **options)
        assert after[[0, 1, 3]].isfinite().all() and after[2, 7].isnan()
        if "group_l1" in options:
            assert after[2].isnan().all()


def test_infinite_norms() -> None:
    """They are not shrunk; a bound on them leaves nothing of finite weights."""
    weight = torch.tensor([[math.inf, 1.0, -2.0], [3e38, 3e38, 3e38], [3.0, 4.0, 0.0]])
    for setting in SETTINGS:
        shrunk = one_step(weight, torch.zeros(3, 3), setting, group_l1=1.0, group_weight="ones")
        assert torch.equal(shrunk[:2], weight[:2])
        assert torch.equal(shrunk[2], torch.tensor([3.0, 4.0, 0.0]) * (1 - torch.tensor(1.0) / 5))
        bounded = one_step(weight, torch.zeros(3, 3), setting, max_norm=1.0)
        assert bounded[0, 0].isnan() and torch.equal(bounded[0, 1:].abs(), torch.zeros(2))
        assert torch.equal(bounded[1], torch.zeros(3))
        param = nn.Parameter(weight[:1].clone())
        with engine.active(setting):
            decaying = {"group_l1": 0.1, "weight_decay": 0.5, "weight_decay_mode": "prox"}
            optimizer = rk.optim.Adam([param], lr=0.1, **decaying)
            param.grad = torch.zeros_like(param)
            optimizer.step()
        assert torch.equal(param, weight[:1]), "what is taken has no share of an infinite norm"


def test_large_and_small_norms_neither_overflow_nor_vanish() -> None:
    for scale in (1e37, 1e-37):
        weight = torch.full((2, 100), scale)
        for setting in SETTINGS:
            after = one_step(weight, torch.zeros_like(weight), setting, group_l1=0.5 * scale)
            torch.testing.assert_close(after, weight / 2, rtol=1e-6, atol=0)
            unit = one_step(weight, torch.zeros_like(weight), setting, unit_norm=True)
            torch.testing.assert_close(unit, torch.full_like(weight, 0.1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_without_strength_a_kernel_by_groups_leaves_every_bit(dtype: torch.dtype) -> None:
    weight = cases.special_values(dtype).repeat(3).view(3, -1)
    for setting in SETTINGS:
        after = one_step(weight, torch.zeros_like(weight), setting, group_l1=1e-300)  # 0 in float32
        wanted = weight if dtype != torch.float64 else after
        engine.assert_same_bits(after, wanted, str(setting))


@each_penalty
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_a_learning_rate_of_zero_leaves_every_bit_of_a_weight(dtype: torch.dtype, penalty: str) -> None:
    patterns = cases.every_pattern(dtype)[::7][:9000].view(90, 100)
    model = cases.model_of_one(patterns, patterns.flip(0))
    for rule in ("momentum", "adam"):
        for setting in SETTINGS:
            outcome = engine.train(cases.Case(rule, "prox", "prox"), model, setting, lr=0.0, **PENALTIES[penalty])
            assert torch.equal(engine.bits(engine.values_of(outcome, "weight")[0]), engine.bits(patterns)), setting


def test_a_step_that_is_left_out_changes_nothing_but_counts_its_zero_groups() -> None:
    for groups in (Groups((4, 6)), Groups((260, 300), 1)):
        weight = groups.tensor(torch.float32)
        weight[:, 1] = weight[1] = 0
        for setting in SETTINGS:
            param = nn.Parameter(weight.clone())
            with engine.active(setting):
                options = {"group_l1": 0.1, "skip_nonfinite": True, "stats": True, **groups.options}
                optimizer = rk.optim.Adam([param], lr=0.1, **options)
                param.grad = torch.zeros_like(param)
                optimizer.step()
                before = param.detach().clone()
                param.grad = torch.full_like(param, math.nan)
                optimizer.step()
            assert torch.equal(param, before) and optimizer.stats is not None
            zero = sum(bool((before[mask] == 0).all()) for mask in groups.masks())
            assert optimizer.stats.zero_groups.tolist() == [zero] and zero > 0


def test_the_reference_says_which_groups_are_zero() -> None:
    weight = torch.tensor([[0.0, -0.0], [0.0, 1e-45], [math.nan, 0.0], [0.0, 0.0]])
    assert reference.zero_groups(weight, GroupLayout(1, 4, 2)) == 2
