"""An optimizer kept on the CPU for a model on the device: the bits of the same optimizer and model on the CPU."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regkernels import optim
from tests.gpu.test_no_waiting import no_waiting
from tests.gpu.training import RULES, STRENGTHS, Training, assert_same_training
from tests.support import cases

pytestmark = pytest.mark.gpu

BOTH = pytest.mark.parametrize("free", [False, True])
A_WHILE = 2_000_000
"""Clock cycles, about a millisecond: long enough for what is done too early to be done first."""


def offloaded(rule: str, device: torch.device, *, free: bool, **options: Any) -> Training:
    """A `Training` on ``device`` with another optimizer. Its gradients are elementwise: the CPU computes the same bits."""
    training = Training(rule, device)
    name, own = RULES[rule]
    training.optimizer = optim.CPUOffload(
        training.params, getattr(optim, name), free_gradients=free, **own, **STRENGTHS, **options
    )
    return training


def plain(rule: str, **options: Any) -> Training:
    return Training(rule, torch.device("cpu"), **{"param_rounding": "master", **options})


OPTIONS: dict[str, dict[str, Any]] = {
    "nothing else": {},
    "max_grad_norm": {"max_grad_norm": 0.5, "stats": True},
    "stochastic": {"param_rounding": "stochastic", "state_dtype": torch.bfloat16},
    "skip_nonfinite": {"skip_nonfinite": True, "stats": True},
}


@BOTH
@pytest.mark.parametrize("what", OPTIONS)
@pytest.mark.parametrize("rule", RULES)
def test_steps(rule: str, what: str, device: torch.device, free: bool) -> None:
    got, expected = offloaded(rule, device, free=free, **OPTIONS[what]), plain(rule, **OPTIONS[what])
    for step in range(4):
        for training in (got, expected):
            training.set(lr=0.01 * (step + 1))
            training.whole()
        assert_same_training(got, expected, step)


@BOTH
def test_micro_batches(device: torch.device, free: bool) -> None:
    got, expected = (
        offloaded("adamw", device, free=free, max_grad_norm=0.5),
        plain("adamw", max_grad_norm=0.5),
    )
    for step in range(3):
        for training in (got, expected):
            training.optimizer.zero_grad()
            for _ in range(4):
                training.backward()
            training.optimizer.step()
        assert_same_training(got, expected, step)


def lanes(training: Training) -> list[Any]:
    return list(training.optimizer._lanes.values())


@BOTH
@pytest.mark.parametrize("streams", [1, 2])
def test_nothing_is_too_early(streams: int, cuda: torch.device, free: bool) -> None:
    """Copies and computations that take their time; memory that is given out again at once; weights that are read at once."""
    got, expected = offloaded("adamw", cuda, free=free), plain("adamw")
    own = [torch.cuda.Stream() for _ in range(streams)]
    seen: list[list[Tensor]] = []
    wanted: list[list[Tensor]] = []
    torch.cuda.synchronize()
    for step in range(6):
        stream = own[step % streams]
        stream.wait_stream(own[(step - 1) % streams])
        with torch.cuda.stream(stream):
            got.optimizer.zero_grad()
            torch.cuda._sleep(A_WHILE)
            for lane in lanes(got):
                with torch.cuda.stream(lane._stream):
                    torch.cuda._sleep(A_WHILE)
            got.backward()
            if free:
                assert all(param.grad is None for param in got.params)
            garbage = [torch.full_like(param, float("nan")) for param in got.params for _ in range(3)]
            got.optimizer.step()
            seen.append([param.detach().clone() for param in got.params])
            del garbage
        expected.whole()
        wanted.append([param.detach().clone() for param in expected.params])
    torch.cuda.synchronize()
    for step, (ours, theirs) in enumerate(zip(seen, wanted, strict=True)):
        assert all(torch.equal(a.cpu(), b) for a, b in zip(ours, theirs, strict=True)), step
    assert_same_training(got, expected)


def test_weights_that_have_not_arrived_are_not_overwritten(cuda: torch.device) -> None:
    """Two steps on gradients that are ready, while the device is busy."""
    got, expected = offloaded("adamw", cuda, free=False), plain("adamw")
    for training in (got, expected):
        training.whole()
    torch.cuda.synchronize()
    seen, busy = [], torch.cuda.Stream()
    for _ in range(3):
        with torch.cuda.stream(busy):
            torch.cuda._sleep(A_WHILE)
        torch.cuda.current_stream().wait_stream(busy)
        got.optimizer.step()
        seen.append([param.detach().clone() for param in got.params])
    torch.cuda.synchronize()
    for ours in seen:
        expected.optimizer.step()
        assert all(torch.equal(a.cpu(), b) for a, b in zip(ours, expected.params, strict=True))


def test_the_backward_waits_for_nothing(cuda: torch.device) -> None:
    training = offloaded("adamw", cuda, free=True)
    for _ in range(2):
        training.whole()
    with no_waiting(cuda):
        training.backward()
    training.optimizer.step()


@BOTH
def test_the_device_holds_weights_alone(cuda: torch.device, free: bool) -> None:
    params = [nn.Parameter(torch.randn(2**18, device=cuda)) for _ in range(8)]
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    optimizer = optim.CPUOffload(params, lr=0.1, max_grad_norm=1.0, free_gradients=free)
    for _ in range(2):
        sum(param.square().sum() for param in params).backward()
        torch.cuda.synchronize()
        assert all((param.grad is None) == free for param in params)
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        assert torch.cuda.memory_allocated() == before
    for twin in optimizer._twins.values():
        assert twin.host.is_pinned() and twin._room().is_pinned()
    assert all(value.is_cpu for state in optimizer.state.values() for value in state.values())


@BOTH
def test_state_dicts_from_the_device_and_back(device: torch.device, free: bool) -> None:
    """The optimizer on the device, by other kernels, goes on where this one has stopped, and the other way round."""
    ours = offloaded("adamw", device, free=free)
    theirs = Training("adamw", device, param_rounding="master")
    for step in range(2):
        for training in (ours, theirs):
            training.whole()
        assert_same_training(ours, theirs, step)
    ours.optimizer.load_state_dict(copy.deepcopy(theirs.optimizer.state_dict()))
    assert all(value.is_cpu for state in ours.optimizer.state.values() for value in state.values())
    theirs.optimizer.load_state_dict(copy.deepcopy(ours.optimizer.state_dict()))
    for step in range(2):
        for training in (ours, theirs):
            training.whole()
        assert_same_training(ours, theirs, step)


@BOTH
def test_weights_that_somebody_sets(device: torch.device, free: bool) -> None:
    got, expected = offloaded("adamw", device, free=free), plain("adamw")
    for step in range(3):
        for training in (got, expected):
            training.whole()
            with torch.no_grad():
                training.params[3].fill_(0.3 + step)
            training.params[4].data = torch.full_like(training.params[4], 0.7)
    for training in (got, expected):
        training.whole()
    assert_same_training(got, expected)


@BOTH
def test_other_layouts(device: torch.device, free: bool) -> None:
    """Gradients in other strides than the weights, weights that are slices, complex ones."""
    torch.manual_seed(0)
    values = [torch.randn(6, 8), torch.randn(2, 3, 4, 5), torch.randn(3, 2, dtype=torch.complex64), torch.randn(0, 3)]
    layouts = [
        lambda value: value.t(),
        lambda value: value.to(memory_format=torch.channels_last),
        lambda value: value[:, :1],
        lambda value: value,
    ]
    pulls = [torch.randn(8, 6), torch.randn(2, 3, 4, 5)]
    sides = []
    for where in (device, torch.device("cpu")):
        params = [
            nn.Parameter(layout(value.to(where, copy=True))) for layout, value in zip(layouts, values, strict=True)
        ]
        options: dict[str, Any] = {"lr": 0.1, "max_grad_norm": 0.3}
        optimizer: Any = (
            optim.CPUOffload(params, optim.Adam, free_gradients=free, **options)
            if not sides
            else optim.Adam(params, **options)
        )
        sides.append((params, optimizer))
    for _ in range(3):
        for params, optimizer in sides:
            optimizer.zero_grad()
            loss = sum((param * pull.to(param.device)).sum() for param, pull in zip(params, pulls, strict=False))
            (loss + sum(torch.view_as_real(param).square().sum() for param in params[2:3])).backward()
            optimizer.step()
    for ours, theirs in zip(sides[0][0], sides[1][0], strict=True):
        assert torch.equal(ours.detach().cpu(), theirs.detach())


@pytest.mark.parametrize("amp_scaling", [False, True])
def test_grad_scaler(amp_scaling: bool, cuda: torch.device) -> None:
    """A power of two as scale changes no bits; one step overflows and is left out."""
    got, expected = offloaded("adamw", cuda, free=False, amp_scaling=amp_scaling), plain("adamw")
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10, growth_interval=1000)
    for step in range(4):
        if step != 2:
            expected.whole()
        got.optimizer.zero_grad()
        total = torch.zeros((), device=cuda)
        for param, target in zip(got.params, got.targets, strict=True):
            total = total + (param.float() - target).square().sum()
        scaler.scale(total * (float("inf") if step == 2 else 1.0)).backward()
        scaler.step(got.optimizer)
        scaler.update()
    assert_same_training(got, expected)


@BOTH
def test_l1_weights_may_be_on_the_device(device: torch.device, free: bool) -> None:
    sides: list[tuple[nn.Parameter, Any]] = []
    for where in (device, torch.device("cpu")):
        param = nn.Parameter(torch.linspace(-1, 1, 101).to(where))
        weights = torch.linspace(0, 2, 101).to(where)
        group = {"params": [param], "l1_weights": [weights]}
        options: dict[str, Any] = {"lr": 0.01, "l1": cases.STRENGTHS["l1"]}
        optimizer: Any = (
            optim.AdamW([group], **options) if sides else optim.CPUOffload([group], free_gradients=free, **options)
        )
        sides.append((param, optimizer))
    for step in range(4):
        for param, optimizer in sides:
            optimizer.zero_grad()
            (param * 0.1).sum().backward()
            if step == 2:
                optimizer.param_groups[0]["l1_weights"][0].mul_(3.0)
            optimizer.step()
    assert torch.equal(sides[0][0].detach().cpu(), sides[1][0].detach())
    assert bool((sides[1][0] == 0).any())
