"""A step that is left out never was: no bit, no count, no state, no version; the stats say why."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regkernels
from regkernels import backends, optim
from tests.support import skipping
from tests.support.skipping import KINDS, RULES, Training, assert_same, copies

pytestmark = pytest.mark.usefixtures("one_thread")

NAN, INF = math.nan, math.inf


def by_gradient(bad: float) -> Callable[[Training, int], None]:
    return lambda training, number: training.step(number, bad)


def by_scaler(training: Training, number: int) -> None:
    """As torch.amp.GradScaler hands over that it has found something."""
    training.give(number, NAN)
    training.optimizer.grad_scale, training.optimizer.found_inf = torch.full((), 1024.0), torch.ones(1)
    training.optimizer.step()
    del training.optimizer.grad_scale, training.optimizer.found_inf


WAYS: dict[str, tuple[dict[str, Any], Callable[[Training, int], None]]] = {
    "nan": ({"skip_nonfinite": True}, by_gradient(NAN)),
    "inf, clipping": ({"skip_nonfinite": True, "max_grad_norm": 0.5}, by_gradient(INF)),
    "-inf, stats": ({"skip_nonfinite": True, "stats": True}, by_gradient(-INF)),
    "scaler": ({"amp_scaling": True}, by_scaler),
    "scaler, everything": (
        {"amp_scaling": True, "skip_nonfinite": True, "max_grad_norm": 0.5, "stats": True},
        by_scaler,
    ),
}
OVERFLOW = {
    "overflow": ({"skip_nonfinite": True}, by_gradient(1e200)),
    "overflow, everything": ({"skip_nonfinite": True, "max_grad_norm": 0.5, "stats": True}, by_gradient(1e200)),
}
PAIRS = [(kind, way) for kind in KINDS for way in WAYS] + [("float64", way) for way in OVERFLOW]


@pytest.mark.parametrize("backend", regkernels.info()["backends"])
@pytest.mark.parametrize(("kind", "way"), PAIRS)
def test_a_step_that_is_left_out_never_was(kind: str, way: str, backend: str) -> None:
    options, leave_out = {**WAYS, **OVERFLOW}[way]
    training, other = Training(KINDS[kind], **options), Training(KINDS[kind], **options)
    with backends.use(backend):
        before, states = copies(training.everything()), training.optimizer.state_dict()["state"].keys()  # Adagrad's
        for number in (90, 91):
            leave_out(training, number)
        assert training.optimizer.state_dict()["state"].keys() == states, "nothing was created"
        assert_same(training.everything(), before)
        for number in range(5):
            training.step(number)
            other.step(number)
            if number in (1, 2):
                before, pinned = copies(training.everything()), training.pinned()
                leave_out(training, 92 + number)
                assert training.everything().keys() == before.keys() and training.pinned() == pinned
                assert_same(training.everything(), before)
            assert_same(training.everything(), copies(other.everything()), f"step {number}")
    assert training.states.keys() == other.states.keys()


@pytest.mark.parametrize("kind", ["dampening", "radam", "adagrad", "dampening, stochastic", "complex", "staged halves"])
@pytest.mark.parametrize("backend", regkernels.info()["backends"])
def test_late_first_gradients_in_a_step_that_is_left_out(kind: str, backend: str) -> None:
    """Of parameters that come to others which have been trained, and whose states stay as they are."""
    training, other = (Training(KINDS[kind], skip_nonfinite=True) for _ in range(2))

    def step(of: Training, number: int, bad: float | None, count: int) -> None:
        of.give(number, bad)
        for param in of.params[count:]:
            param.grad = None
        of.optimizer.step()

    with backends.use(backend):
        for number, count in enumerate((2, 2, 4, 5)):
            if count > 2:
                before, pinned = copies(training.everything()), training.pinned()
                step(training, 90 + number, NAN, count)
                assert training.pinned() == pinned
                assert_same(training.everything(), before)
            for of in (training, other):
                step(of, number, None, count)
            assert_same(training.everything(), copies(other.everything()), f"step {number}")


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("bad", [NAN, INF, 1e200])
def test_stats_of_a_step_that_is_left_out(bad: float, first: bool) -> None:
    """The norm says why; the sums are those of the weights that stayed."""
    training = Training(KINDS["float64"], skip_nonfinite=True, stats=True, max_grad_norm=1.0)
    if not first:
        training.step(0)
    training.give(1, bad)
    training.params[4].grad = None
    training.optimizer.step()
    stats = training.optimizer.stats
    assert stats.grad_norm.isnan() if math.isnan(bad) else stats.grad_norm == INF
    weights = [
        torch.cat([p.detach().flatten() for p in group]) for group in (training.params[:2], training.params[2:4])
    ]
    torch.testing.assert_close(stats.l1_norm, torch.stack([w.abs().sum() for w in weights]), rtol=1e-12, atol=0)
    torch.testing.assert_close(stats.squared_norm, torch.stack([(w * w).sum() for w in weights]), rtol=1e-12, atol=0)
    assert stats.nonzeros.tolist() == [w.count_nonzero() for w in weights]
    training.step(2)
    assert training.optimizer.stats.grad_norm.isfinite()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("first", [True, False])
def test_zero_groups_of_a_step_that_is_left_out(first: bool, dtype: torch.dtype) -> None:
    """Also where it was the first, and weights lie anywhere in memory; of what has no gradient nothing is counted."""
    columns = torch.ones(6, 4, dtype=dtype)[:, ::2]
    params = [nn.Parameter(w) for w in (torch.ones(2, 5, dtype=dtype).t(), columns, columns.clone())]
    for param in params:
        param.data[1:4] = 0
    options = {"group_l1": 1e-6, "stats": True, "skip_nonfinite": True}
    optimizer = optim.Adam([{"params": params}, {"params": [nn.Parameter(torch.zeros(3))]}], lr=1e-6, **options)
    for norm in (NAN,) if first else (0.0, NAN):
        for param in params[:2]:
            param.grad = torch.full_like(param, norm)
        optimizer.step()
    assert optimizer.stats is not None and optimizer.stats.zero_groups.tolist() == [6, 0]


@pytest.mark.parametrize("clip", [None, 1.0])
def test_large_gradients_of_float32_are_no_reason(clip: float | None) -> None:
    """Their norm is formed in float64."""
    p = nn.Parameter(torch.ones(1000))
    p.grad = torch.full((1000,), 1e38)
    optim.SGD([p], lr=1e-38, skip_nonfinite=True, max_grad_norm=clip).step()
    wanted = 1 - 1e-38 * (1e38 if clip is None else 1000**-0.5)
    torch.testing.assert_close(p.detach(), torch.full((1000,), wanted))


def test_a_bad_gradient_of_one_optimizer_is_no_matter_to_another() -> None:
    one, other, alone = (Training(RULES["adam"], skip_nonfinite=True) for _ in range(3))
    one.step(0, NAN)
    other.step(0)
    alone.step(0)
    assert not one.states
    assert_same(other.everything(), alone.everything())


def test_without_the_option_a_bad_gradient_spreads_as_it_does_in_torch() -> None:
    training = Training(RULES["sgd"])
    training.step(0, NAN)
    assert [int(param.isnan().sum()) for param in training.params] == [0, 0, 0, 1, 0]


def test_a_closure_is_evaluated_and_answered_all_the_same() -> None:
    training = Training(RULES["adam"], skip_nonfinite=True)
    before = copies(training.everything())

    def closure() -> Tensor:
        training.give(0, NAN)
        return torch.tensor(NAN)

    assert training.optimizer.step(closure).isnan()
    assert_same(training.everything(), before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda t: t], ids=["deepcopy", "itself"])
def test_a_checkpoint_between_steps_that_were_left_out(copied: Callable[[Training], Training]) -> None:
    """A state dict knows nothing of them."""
    training, other = (Training(RULES["dampening"], skip_nonfinite=True) for _ in range(2))
    for number in range(2):
        training.step(number)
        other.step(number)
        training.step(90 + number, INF)
        packed = copy.deepcopy(training.optimizer.state_dict())
        training = copied(training)
        training.optimizer.load_state_dict(packed)
        training.step(95 + number, NAN)
    for of in (training, other):
        of.step(2)
    assert_same(training.everything(), copies(other.everything()))


def test_two_step_counts_that_part_stay_parted() -> None:
    """A step left out between others counts for nobody, whether or not a parameter had a gradient in it."""
    training = Training(RULES["adam"], skip_nonfinite=True)
    training.step(0)
    training.give(1)
    training.params[0].grad = None
    training.optimizer.step()
    training.step(2, NAN)
    training.step(3)
    assert [int(training.states[f"{index}: step"]) for index in range(5)] == [2, 3, 3, 3, 3]


def test_the_kinds_are_what_they_are_called() -> None:
    """Among them staged and merged parameters, and every state."""

    def plan(kind: str) -> Any:
        training = Training(KINDS[kind])
        training.step(0)
        return training.optimizer._stepper.plans[0]

    staged = {kind: sum(entry.staged for entry in plan(kind).entries) for kind in skipping.KINDS}
    assert [kind for kind in staged if staged[kind] > 0] == [
        "complex",
        "staged",
        "staged halves",
        "gradients of another layout",
    ]
    assert len(plan("flat").active.segments) == 2
    names = {name for kind in KINDS for entry in plan(kind).entries for name in entry.state_names}
    assert names >= {"momentum_buffer", "max_exp_avg_sq", "grad_avg", "sum", "remainder", "master"}
