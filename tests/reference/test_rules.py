"""The specification itself: its steps against the papers' formulas."""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import regkernels
from regkernels import backends, optim, prox, reference
from regkernels.table import hyper
from regkernels.table.hyper import Hyper
from tests.reference.scalars import CASES, DECAY, L1, STEPS


@pytest.mark.parametrize(("name", "l1_mode", "weight_decay_mode", "maximize", "limit"), CASES)
@pytest.mark.parametrize("backend", regkernels.info()["backends"])
def test_steps_follow_the_papers(
    backend: str, name: str, l1_mode: str, weight_decay_mode: str, maximize: bool, limit: float | None
) -> None:
    scalar, make, options = STEPS[name]
    start = torch.tensor([1.5, -1.0, 0.02, -0.01, 0.0, 3.0, -0.4], dtype=torch.float64)
    gradients = torch.randn(12, len(start), dtype=torch.float64)
    gradients[5:] *= 0.05  # small ones, so that the maximum of AMSGrad and the thresholds matter
    w = torch.nn.Parameter(start.clone())
    optimizer = make(
        [w],
        **options,
        l1=L1,
        weight_decay=DECAY,
        l1_mode=l1_mode,
        weight_decay_mode=weight_decay_mode,
        maximize=maximize,
        shrink_limit=limit,
    )
    expected = [scalar(value, maximize, l1_mode, weight_decay_mode, limit) for value in start.tolist()]
    with backends.use(backend):
        for row in gradients:
            w.grad = row.clone()
            optimizer.step()
            for one, g in zip(expected, row.tolist(), strict=True):
                one.step(g)
            now = torch.tensor([one.w for one in expected], dtype=torch.float64)
            torch.testing.assert_close(w.detach(), now, rtol=1e-11, atol=1e-14)


def test_a_step_with_lr_zero_moves_states_only() -> None:
    w = torch.tensor([0.1, -0.0, math.nan, 3.0], dtype=torch.float64)
    before, states = w.clone(), [torch.zeros(4, dtype=torch.float64) for _ in range(2)]
    row = Hyper(decay=0.5, threshold=1.0, coupled_decay=1.0, beta1=0.9, one_minus_beta1=0.1, eps=1e-8)
    reference.update_("adam", w, torch.ones(4, dtype=torch.float64), states, row)
    assert torch.equal(w.view(torch.int64), before.view(torch.int64))
    assert states[0][0] == 0.1 * 1.1 and states[1][0] > 0


# --- hyper-parameters ---


@pytest.mark.parametrize("gain", [1.0, 10.0])
@pytest.mark.parametrize("per_element", [False, True])
@pytest.mark.parametrize("limit", [2.5, None])
def test_regularisation_of_every_mode(limit: float | None, per_element: bool, gain: float) -> None:
    def fields(l1_mode: str, weight_decay_mode: str) -> dict[str, float]:
        modes = {"l1_mode": l1_mode, "weight_decay_mode": weight_decay_mode}
        group = {"lr": 0.1, "l1": 0.3, "weight_decay": 0.2, "shrink_limit": limit, **modes}
        row = Hyper(**hyper.regularisation(group, gain=gain, step_per_element=per_element))
        return {name: value for name, value in row._asdict().items() if value != Hyper._field_defaults[name]}

    if per_element:
        l1_prox, decay_prox = {"threshold_per_step": 0.3 * gain}, {"shrink_per_step": 0.2 * gain}
    else:
        l1_prox, decay_prox = {"threshold": 0.1 * 0.3 * gain}, {"shrink_divisor": 1 + 0.1 * 0.2 * gain}
    l1_modes = {"prox": l1_prox, "decoupled": {"threshold": 0.1 * 0.3}, "subgradient": {"subgradient": 0.3}}
    decay_modes = {"coupled": {"coupled_decay": 0.2}, "decoupled": {"decay": 1 - 0.1 * 0.2}, "prox": decay_prox}
    always = {"lr": 0.1} if gain == 1 else {"lr": 0.1, "gain": gain}
    if limit and per_element:
        always["largest_shrink"] = 2.5 * 0.1 * gain
    for (l1_mode, of_l1), (decay_mode, of_decay) in itertools.product(l1_modes.items(), decay_modes.items()):
        assert fields(l1_mode, decay_mode) == pytest.approx({**always, **of_l1, **of_decay}, rel=1e-15)


def test_rows_are_rounded_once_to_the_compute_type() -> None:
    row = Hyper(lr=0.1, decay=1 - 1e-9, eps=1e-50)
    single = row.rounded(torch.float32)
    assert row.rounded(torch.float64) == row
    assert single.lr == struct.unpack("f", struct.pack("f", 0.1))[0] and single.decay == 1.0 and single.eps == 0.0
    assert hyper.as_float(torch.tensor([0.5])) == hyper.as_float(0.5) == 0.5


# --- sums, penalties, and who calls the reference ---


def test_sums_and_penalties_of_the_reference() -> None:
    tensors = [torch.tensor([1.0, -2.0, 0.0]), torch.tensor([[3.0]], dtype=torch.float64), torch.empty(0)]
    assert reference.sums(tensors) == (6.0, 14.0, 3)
    assert reference.l1_penalty(tensors, 0.5).item() == 3.0
    assert reference.l2_penalty(tensors, 0.5).item() == 7.0
    assert reference.elastic_net_penalty(tensors, 1.0, 2.0).item() == 34.0
    assert reference.elastic_net_penalty(tensors[:1], 1.0, 2.0).dtype == torch.float32
    assert torch.equal(reference.penalty_gradient(tensors[0], 0.5, 2.0), torch.tensor([2.5, -4.5, 0.0]))
    signs = reference.sign(torch.tensor([-0.0, 5.0, -math.inf, math.nan]))
    assert signs[:3].tolist() == [0, 1, -1] and signs[3].isnan()


def everything() -> Sequence[Tensor]:
    w = torch.nn.Parameter(torch.ones(5))
    optimizer = optim.SGD([w], lr=0.1, stats=True)
    regkernels.l1_penalty(w, 0.5).backward()
    optimizer.step()
    return w, prox.soft_threshold(w.detach(), 0.1)


@pytest.mark.parametrize("backend", regkernels.info()["backends"])
def test_the_backend_in_use_does_the_work(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = set()

    def spy(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any) -> Any:
            called.add(name)
            return original(*args)

        return wrapper

    for name in ("update_", "sums", "penalty_gradient", "soft_threshold"):
        monkeypatch.setattr(reference, name, spy(name, getattr(reference, name)))
    with backends.use(backend):
        assert backends.name() == backend
        w, shrunk = everything()
    torch.testing.assert_close([w.detach(), shrunk], [torch.full((5,), 0.95), torch.full((5,), 0.85)])
    expected = {"update_", "sums", "penalty_gradient", "soft_threshold"} if backend == "reference" else set()
    assert called == expected
