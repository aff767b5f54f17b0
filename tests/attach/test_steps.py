"""`attach_prox` step by step: thresholds, groups, schedules, scalers, types and layouts."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import regkernels as rk
from regkernels import attach_prox
from tests.support import training
from tests.support.attaching import Make, closed_form, of, parameter

pytestmark = pytest.mark.interpreted

# A constant gradient moves a weight by its step and gain at once, as these correct for the bias of what they average.
OPTIMIZERS: dict[str, Make] = {
    "adam": of("Adam", lr=0.02, betas=(0.7, 0.9)),
    "adam, fused": of("Adam", lr=0.02, fused=True),
    "adam, amsgrad": of("Adam", lr=0.02, amsgrad=True, foreach=False),
    "adamw": of("AdamW", lr=0.02, weight_decay=0.0, eps=1e-2),
    "adam, lr in a tensor": of("Adam", lr=torch.tensor(0.02, dtype=torch.float64), foreach=False),
    "nadam": of("NAdam", lr=0.02, betas=(0.8, 0.9), momentum_decay=0.3),
    "radam": of("RAdam", lr=0.02, betas=(0.8, 0.9)),
    "adamax": of("Adamax", lr=0.02, betas=(0.8, 0.9)),
    "rmsprop": of("RMSprop", lr=0.002),
    "rmsprop, centered": of("RMSprop", lr=0.002, centered=True, eps=1e-2),
    "adagrad": of("Adagrad", lr=0.02, lr_decay=0.3, initial_accumulator_value=0.2),
    "sgd": of("SGD", lr=0.02),
}


def plain_step(optimizer: torch.optim.Optimizer, param: nn.Parameter) -> Tensor:
    """The weight after a step of a copy of the optimizer, which has no hooks."""
    twin, plain = copy.deepcopy((param, optimizer))
    twin.grad = param.grad
    plain.step()
    return twin.detach()


@pytest.mark.parametrize("limit", [None, 2.0, 1.25])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_threshold_is_l1_times_what_a_gradient_of_one_moves(name: str, limit: float | None) -> None:
    """Measured at a twin with nothing attached, from the very first step on; bounded in units of lr where that is adapted."""
    param = parameter(40)
    param.grad = torch.randn(40, dtype=torch.float64)
    optimizer = OPTIMIZERS[name]([param])
    attach_prox(optimizer, l1=0.3, weight_decay=0.7, shrink_limit=limit)
    for step in range(12):
        before = param.detach().clone()
        after = plain_step(optimizer, param)
        per_gradient = (before - after) / param.grad
        optimizer.step()
        expected = closed_form(after, 0.3 * per_gradient, 1 + 0.7 * per_gradient)
        if limit is not None and name not in ("sgd", "rmsprop, centered") and not (name == "radam" and step < 5):
            group = optimizer.param_groups[0]
            most = limit * float(group["lr"]) / (1 + step * group.get("lr_decay", 0.0))
            expected = after - (after - expected).clamp(-most, most)
        torch.testing.assert_close(param.detach(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "gain"),
    [
        (of("SGD", lr=0.02, momentum=0.9), 10.0),
        (of("SGD", lr=0.02, momentum=0.9, dampening=0.5, nesterov=False), 5.0),
        (of("SGD", lr=0.02, momentum=0.5, nesterov=True), 2.0),
        (of("RMSprop", lr=0.02, alpha=0.0, momentum=0.75, eps=0.0), 4.0),
    ],
)
def test_momentum_multiplies_the_threshold_by_its_gain(make: Make, gain: float) -> None:
    param = parameter(40)
    param.grad = torch.where(torch.rand(40) < 0.5, -1.0, 1.0).double()  # whose root of the mean square is 1
    optimizer = make([param])
    attach_prox(optimizer, l1=0.3)
    for _ in range(3):
        after = plain_step(optimizer, param)
        optimizer.step()
        torch.testing.assert_close(param.detach(), closed_form(after, 0.3 * 0.02 * gain), rtol=1e-10, atol=1e-12)


def test_decoupled_takes_lr_for_every_element() -> None:
    make = OPTIMIZERS["adam"]
    param = parameter(40)
    param.grad = torch.randn_like(param)
    optimizer = make([param])
    attach_prox(optimizer, l1=0.3, weight_decay=0.7, l1_mode="decoupled")
    for _ in range(3):
        after = plain_step(optimizer, param)
        optimizer.step()
        expected = closed_form(after, 0.3 * 0.02, 1 + 0.7 * 0.02)
        torch.testing.assert_close(param.detach(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["adam", "nadam", "radam", "adagrad", "adamax"])
def test_counts_that_stay_on_the_device_give_the_same(name: str) -> None:
    """As with capturable=True, but in the hook only: torch itself captures nothing on a CPU."""
    found = []
    for capturable in (False, True):
        torch.manual_seed(1)
        params = [parameter(30), parameter(3, 5)]
        optimizer = OPTIMIZERS[name](params)
        optimizer.register_step_post_hook(
            lambda opt, *_, on=capturable: opt.param_groups[0].update(capturable=on)  # before the hook that shrinks
        )
        attach_prox(optimizer, l1=0.3, weight_decay=torch.tensor(0.7))
        optimizer.register_step_post_hook(lambda opt, *_: opt.param_groups[0].update(capturable=False))
        for step in range(9):
            params[0].grad = torch.randn_like(params[0])
            params[1].grad = torch.randn_like(params[1]) if step % 3 else None  # counts differ
            optimizer.step()
        found.append(params)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


# --- which weights ---


def test_what_had_no_gradient_is_not_shrunk() -> None:
    params = [parameter(8), parameter(8), parameter(8)]
    optimizer = torch.optim.Adam(params, lr=0.01)
    attach_prox(optimizer, l1=0.5, shrink_limit=None)
    without = params[1].detach().clone()
    params[0].grad, params[2].grad = torch.zeros(8).double(), torch.ones(8).double()
    optimizer.step()
    assert torch.equal(params[1], without)
    assert params[0].count_nonzero() == 0  # a gradient of zero is one: Adam's step there is lr / eps
    assert params[2].count_nonzero() == 8
    params[0].grad = None
    params[1].grad = torch.full((8,), 3.0).double()
    optimizer.step()  # other counts, other rows
    assert (params[1].abs() - without.abs()).abs().max() < 0.02


def test_groups_have_strengths_of_their_own() -> None:
    model = training.network()
    groups = rk.param_groups(model, l1=0.4)
    optimizer = torch.optim.SGD(groups, lr=0.1)
    attach_prox(optimizer, l1=7.0)
    late = parameter(5)
    optimizer.add_param_group({"params": [late]})
    assert [group["l1"] for group in optimizer.param_groups[:2]] == [0.4, 0.0]
    training.backward(model)
    late.grad = torch.zeros_like(late)
    expected = [param.detach() - 0.1 * param.grad for param in model.parameters()]
    shrunk_late = closed_form(late.detach(), 0.7)
    optimizer.step()
    assert optimizer.param_groups[2]["l1"] == 7.0
    for param, z in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(param.detach(), closed_form(z, 0.04) if param.dim() > 1 else z, rtol=1e-12, atol=0)
    torch.testing.assert_close(late.detach(), shrunk_late)


def test_schedules_of_lr_and_of_the_strength() -> None:
    """The threshold is that of the lr that the step was made with."""
    param = parameter(20)
    optimizer = torch.optim.SGD([param], lr=0.4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    attach_prox(optimizer, l1=0.3)
    for step in range(4):
        param.grad = torch.randn_like(param)
        optimizer.param_groups[0]["l1"] = 0.3 + step
        lr = 0.4 * 0.5**step
        expected = closed_form(param.detach() - lr * param.grad, lr * (0.3 + step))
        optimizer.step()
        scheduler.step()
        torch.testing.assert_close(param.detach(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_lr_zero_leaves_every_bit_alone(name: str) -> None:
    param = parameter(20)
    param.grad = torch.randn_like(param)
    optimizer = OPTIMIZERS[name]([param])
    attach_prox(optimizer, l1=0.3, weight_decay=0.7)
    optimizer.param_groups[0]["lr"] = 0.0
    before = param.detach().clone()
    optimizer.step()
    assert torch.equal(param, before)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_leaves_out_shrinks_nothing(fused: bool) -> None:
    """A fused step is called all the same, and told to do nothing."""
    params = [parameter(20, dtype=torch.float32)]
    params.append(copy.deepcopy(params[0]))
    scaled, plain = (torch.optim.Adam([param], lr=0.01, fused=fused) for param in params)
    for optimizer in (scaled, plain):
        attach_prox(optimizer, l1=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    gradient = torch.linspace(-1, 1, 20)
    for good in (False, True, False, True):
        before = params[0].detach().clone()
        scaled.zero_grad()
        scaler.scale((params[0] * gradient).sum() * (1.0 if good else float("inf"))).backward()
        scaler.step(scaled)
        scaler.update()
        if good:
            params[1].grad = gradient.clone()
            plain.step()
        assert torch.equal(params[0], before) != good
        assert torch.equal(*params)


def test_a_closure_is_evaluated_once_and_its_gradients_count() -> None:
    param = parameter(20)
    optimizer = torch.optim.SGD([param], lr=0.1)
    attach_prox(optimizer, l1=0.5)
    calls = []

    def closure() -> Tensor:
        calls.append(optimizer.zero_grad())
        loss = (param * 2).sum()
        loss.backward()
        return loss

    expected = closed_form(param.detach() - 0.2, 0.05)
    loss = optimizer.step(closure)
    assert len(calls) == 1 and loss is not None
    torch.testing.assert_close(param.detach(), expected, rtol=1e-12, atol=1e-14)


def test_autograd_notices() -> None:
    param = parameter(4)
    optimizer = torch.optim.SGD([param], lr=0.1)
    handle = attach_prox(optimizer, l1=0.5)
    param.grad = torch.ones_like(param)
    version = param._version
    optimizer.step()
    shrunk = param._version - version
    handle.remove()
    version = param._version
    optimizer.step()
    assert shrunk > param._version - version


# --- types and layouts ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["adam", "rmsprop, centered", "adamax", "sgd"])
def test_other_types_are_computed_in_float32_and_rounded_once(name: str, dtype: torch.dtype) -> None:
    """torch keeps the states of half-precision weights in their type."""
    param = parameter(200, dtype=dtype)
    param.grad = torch.randn(200).to(dtype)
    optimizer = OPTIMIZERS[name]([param])
    attach_prox(optimizer, l1=0.3, weight_decay=0.7, shrink_limit=None)
    after = plain_step(optimizer, param).float()
    optimizer.step()
    state = {key: value.double() for key, value in optimizer.state[param].items()} if optimizer.state else {}
    s = {
        "adam": lambda: 0.02 / ((state["exp_avg_sq"] / 0.1).sqrt() + 1e-8),
        "rmsprop, centered": lambda: (
            0.002 / ((state["square_avg"] - state["grad_avg"] ** 2).clamp(min=0).sqrt() + 1e-2)
        ),
        "adamax": lambda: 0.02 / state["exp_inf"],
        "sgd": lambda: 0.02,
    }[name]()
    expected = closed_form(after.double(), 0.3 * s, 1 + 0.7 * s)
    ulp = torch.finfo(dtype).eps * expected.abs()
    assert ((param.detach().double() - expected).abs() <= 0.51 * ulp + 1e-6 * after.abs()).all()


def test_small_shrinkages_are_lost_in_bfloat16() -> None:
    param = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    param.grad = torch.zeros_like(param)
    optimizer = torch.optim.SGD([param], lr=1.0)
    attach_prox(optimizer, l1=2**-10)
    optimizer.step()
    assert param.item() == 1.0
    optimizer.param_groups[0]["l1"] = 2**-8
    optimizer.step()
    assert param.item() == 1.0 - 2**-8


def test_weights_and_states_in_layouts_of_their_own() -> None:
    values, gradients = torch.randn(6, 8).double(), torch.randn(6, 8).double()
    found = []
    for place in (Tensor.clone, lambda v: v.t().contiguous().t(), lambda v: v.repeat(1, 2)[:, :8]):
        param = nn.Parameter(place(values))
        optimizer = torch.optim.Adam([param], lr=0.02, foreach=False)
        attach_prox(optimizer, l1=0.3, weight_decay=0.7)
        for _ in range(3):
            param.grad = gradients.clone()
            optimizer.step()
            moment = optimizer.state[param]["exp_avg_sq"]
            optimizer.state[param]["exp_avg_sq"] = moment.t().contiguous().t()  # in another place and layout
        found.append(param.detach())
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-13, atol=0)
    assert (found[0] == 0).any()
