"""What torch's optimizers promise holds on a device: sums, clipping, state dicts, models that move, failures."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regkernels
from regkernels.backends.triton import launch as launching
from tests.gpu.training import RULES, STRENGTHS, Training, assert_same_training
from tests.support import cases, engine

pytestmark = pytest.mark.gpu


def assert_near(got: list[Tensor], expected: list[Tensor]) -> None:
    """For other formulas of the same thing: to the rounding of a few steps."""
    for one, other in zip(got, expected, strict=True):
        tolerance = 1e-5 if one.dtype == torch.float32 else 2e-2
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


# --- sums and clipping ---


@pytest.mark.parametrize("rule", RULES)
def test_sums_are_those_of_the_weights_and_stay_what_they_were(rule: str, device: torch.device) -> None:
    training = Training(rule, device, stats=True)
    kept = []
    for _ in range(4):
        training.whole()
        stats = training.optimizer.stats
        weights = torch.cat([param.detach().double().flatten() for param in training.params])
        gradients = torch.cat([param.grad.double().flatten() for param in training.params])
        expected = {
            "l1_norm": weights.abs().sum(),
            "squared_norm": weights.square().sum(),
            "nonzeros": weights.count_nonzero(),
            "grad_norm": gradients.norm(),
            "zero_groups": weights.new_zeros(()),
        }
        assert expected.keys() == set(stats._fields)
        for name, wanted in expected.items():
            value = getattr(stats, name)
            assert value.device == training.params[0].device
            torch.testing.assert_close(value.squeeze(), wanted, rtol=1e-12, atol=0, check_dtype=False)
        kept.append((stats, [value.clone() for value in stats]))
    for stats, copies in kept:
        assert all(torch.equal(value, then) for value, then in zip(stats, copies, strict=True))


@pytest.mark.parametrize("rule", RULES)
def test_max_grad_norm_is_clip_grad_norm(rule: str, device: torch.device) -> None:
    float32 = (torch.float32,)  # torch rounds norms and products of bfloat16 gradients to bfloat16
    ours = Training(rule, device, max_grad_norm=0.5, stats=True, dtypes=float32)
    plain = Training(rule, device, dtypes=float32)
    for _ in range(3):
        ours.whole()
        plain.optimizer.zero_grad()
        plain.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.params, 0.5)
        plain.optimizer.step()
        torch.testing.assert_close(ours.optimizer.stats.grad_norm.float(), norm, rtol=1e-5, atol=0)
    assert_near(ours.params, plain.params)


# --- state dicts ---


def torch_twin(training: Training, **options: Any) -> torch.optim.Optimizer:
    """torch's optimizer of the same name over copies of the parameters, with copies of the gradients."""
    params = [nn.Parameter(param.detach().clone()) for param in training.params]
    return torch.optim.AdamW(params, lr=STRENGTHS["lr"], weight_decay=STRENGTHS["weight_decay"], **options)


def both_step(training: Training, twin: torch.optim.Optimizer, steps: int = 2) -> list[Tensor]:
    params = twin.param_groups[0]["params"]
    for _ in range(steps):
        training.optimizer.zero_grad()
        training.backward()
        for param, ours in zip(params, training.params, strict=True):
            param.grad = ours.grad.clone()
        training.optimizer.step()
        twin.step()
    return params


@pytest.mark.parametrize("capturable", [False, True])
def test_state_dicts_from_and_to_torch_s_fused_adamw(capturable: bool, cuda: torch.device) -> None:
    """float32: for bfloat16 weights torch keeps bfloat16 states, which is another computation."""
    ours = Training("adamw", cuda, fused=True, capturable=capturable, dtypes=(torch.float32,))
    ours.set(l1=0.0)
    twin = torch_twin(ours, fused=True, capturable=capturable)
    assert_near(ours.params, both_step(ours, twin))
    theirs = copy.deepcopy(twin.state_dict())
    own = copy.deepcopy(ours.optimizer.state_dict())
    ours.optimizer.load_state_dict(theirs)
    twin.load_state_dict(own)
    assert_near(ours.params, both_step(ours, twin))
    assert ours.counts == {4.0}
    assert {float(state["step"]) for state in twin.state.values()} == {4.0}


@pytest.mark.parametrize("rule", ["adam", "amsgrad", "adamw"])
def test_a_capturable_state_dict_goes_on_where_it_was(rule: str, device: torch.device) -> None:
    straight = Training(rule, device, tensors=True, capturable=True)
    stopped = Training(rule, device, tensors=True, capturable=True)
    for training in (straight, stopped):
        training.whole()
        training.whole()
    saved = copy.deepcopy(stopped.optimizer.state_dict())
    name, own = RULES[rule]
    stopped.optimizer = getattr(regkernels.optim, name)(stopped.params, **own, capturable=True)
    stopped.optimizer.load_state_dict(saved)
    for training in (straight, stopped):
        training.whole()
        training.whole()
    assert_same_training(stopped, straight)
    assert stopped.counts == {4.0}
    assert all(state["step"].device.type == device.type for state in vars(stopped.optimizer)["state"].values())


# --- devices ---


@pytest.mark.parametrize("when", [0, 2])
@pytest.mark.parametrize("rule", RULES)
def test_a_model_that_moves_to_the_device_trains_on(rule: str, when: int, device: torch.device) -> None:
    """Before its first step and between two; states go along."""
    name, own = RULES[rule]
    outcomes = []
    for move in (False, True):
        torch.manual_seed(0)
        model = nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in ((5, 7), (33,), (8193,))])
        optimizer = getattr(regkernels.optim, name)(model.parameters(), **own, **STRENGTHS)
        for step in range(4):
            gradients = [torch.randn(param.shape) for param in model]
            if move and step == when:
                model.to(device)
            for param, gradient in zip(model, gradients, strict=True):
                param.grad = gradient.to(param.device)
            optimizer.step()
        outcomes.append(engine.on_cpu(engine.snapshot(optimizer)))
    engine.assert_same(outcomes[1], outcomes[0])


@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
@pytest.mark.parametrize("rule", RULES)
def test_groups_on_two_devices_in_one_optimizer(rule: str, max_grad_norm: float | None, device: torch.device) -> None:
    outcomes = []
    for second in (torch.device("cpu"), device):
        torch.manual_seed(0)
        groups = [[nn.Parameter(torch.randn(33).to(place)) for _ in range(3)] for place in ("cpu", second)]
        name, own = RULES[rule]
        optimizer = getattr(regkernels.optim, name)(
            [{"params": params} for params in groups], **own, **STRENGTHS, stats=True, max_grad_norm=max_grad_norm
        )
        for _ in range(3):
            for params in groups:
                for param in params:
                    param.grad = torch.randn(33).to(param.device)
            optimizer.step()
        outcomes.append(engine.on_cpu(engine.snapshot(optimizer)))
    if max_grad_norm is None:
        engine.assert_same(outcomes[1], outcomes[0])
    else:  # the sum of two devices' sums may round otherwise
        engine.assert_close(outcomes[1], outcomes[0], rtol=1e-5)


def test_parameters_of_one_group_on_two_devices_are_refused(cuda: torch.device) -> None:
    params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, device=cuda))]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = regkernels.optim.SGD(params, lr=0.1)
    with pytest.raises(ValueError, match="several devices"):
        optimizer.step()
    assert all((param == 1).all() for param in params)


def test_penalties_of_two_devices_are_refused(cuda: torch.device) -> None:
    with pytest.raises(ValueError, match="sum the penalties of each device"):
        regkernels.l1_penalty([torch.ones(3), torch.ones(3, device=cuda)], 0.1)


@pytest.mark.parametrize("rule", RULES)
def test_a_default_device_changes_nothing(rule: str, device: torch.device) -> None:
    """The tables that the host fills are made on the host, whatever the user has chosen for tensors in general."""
    plain, chosen = Training(rule, device, stats=True), Training(rule, device, stats=True)
    for _ in range(3):
        plain.whole()
        chosen.optimizer.zero_grad()
        chosen.backward()
        with torch.device("meta" if device.type == "cpu" else device):
            chosen.optimizer.step()
    assert_same_training(chosen, plain)


# --- failures ---


@pytest.mark.parametrize("when", [0, 2])
@pytest.mark.parametrize("options", [{}, {"capturable": True}], ids=str)
@pytest.mark.parametrize("rule", ["nesterov", "adam", "adamw"])
def test_a_launch_that_fails_counts_as_no_step(
    rule: str, options: dict[str, Any], when: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if rule == "nesterov" and options:
        pytest.skip("SGD counts no steps")
    failing, plain = Training(rule, device, stats=True, **options), Training(rule, device, stats=True, **options)
    for step in range(4):
        if step == when:
            failing.optimizer.zero_grad()
            failing.backward()
            before = [param.detach().clone() for param in failing.params]
            with monkeypatch.context() as patched:
                patched.setattr(launching, "launch", broken)
                with pytest.raises(RuntimeError, match="out of resources"):
                    failing.optimizer.step()
            assert all(torch.equal(param, old) for param, old in zip(failing.params, before, strict=True))
            if rule != "nesterov":
                assert failing.counts == {float(step)}
        for training in (failing, plain):
            training.whole()
    assert_same_training(failing, plain)


def broken(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError("out of resources")


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_backward_notices_a_step_since_forward(dtype: torch.dtype, device: torch.device) -> None:
    weight = nn.Parameter(torch.randn(5, device=device).to(dtype))
    optimizer = regkernels.optim.Adam([weight], lr=0.1)
    for _ in range(2):
        weight.grad = torch.ones_like(weight)
        saved = weight.square().sum()
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            saved.backward()
