"""Hyper-parameters and step counts that live in device memory; the interpreter's device is the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from regkernels import backends, optim
from tests.support import cases, engine

pytestmark = pytest.mark.interpreted

OPTIONS = {"lr": 1e-2, "l1": 1e-2, "weight_decay": 0.1}
LATER = {"lr": 3e-3, "l1": 2e-3, "weight_decay": 0.3}
RULES = ("sgd", "momentum", "adam", "amsgrad", "adamw", "rmsprop_both", "radam")


def twins(rule: str, **options: Any) -> list[torch.optim.Optimizer]:
    """The same training with numbers, which the reference does, and with tensors, which the kernels do."""
    name, own = cases.RULES[rule]
    tensors: dict[str, Any] = {key: torch.tensor(value, dtype=torch.float64) for key, value in OPTIONS.items()}
    if name != "SGD":
        tensors["capturable"] = True
    weights = [torch.randn(n) for n in (5, 513, 1000)]
    return [
        getattr(optim, name)(
            [nn.Parameter(weight.clone()) for weight in weights], stats=True, **{**own, **options, **strengths}
        )
        for strengths in (OPTIONS, tensors)
    ]


def step_both(pair: list[torch.optim.Optimizer], without: int | None = None) -> None:
    gradients = [torch.randn(5), torch.randn(513), torch.randn(1000)]
    for optimizer, backend in zip(pair, ("reference", "triton"), strict=True):
        for index, (param, gradient) in enumerate(zip(optimizer.param_groups[0]["params"], gradients, strict=True)):
            param.grad = None if index == without else gradient.clone()
        with backends.use(backend):
            optimizer.step()


def assert_alike(pair: list[torch.optim.Optimizer]) -> None:
    engine.assert_same(*(engine.snapshot(optimizer) for optimizer in pair[::-1]))


@pytest.mark.parametrize("mode", ["coupled", "decoupled", "prox"])
@pytest.mark.parametrize("rule", RULES)
def test_tensors_that_change_are_seen(rule: str, mode: str) -> None:
    pair = twins(rule, weight_decay_mode=mode)
    if rule in ("sgd", "momentum"):
        pair[1].param_groups[0]["capturable"] = True  # an option that SGD carries along
    for number in range(4):
        if number == 2:
            for key, value in LATER.items():
                pair[0].param_groups[0][key] = value
                pair[1].param_groups[0][key].fill_(value)
        step_both(pair)
        assert_alike(pair)


def test_parameters_that_were_not_always_stepped_together_have_counts_of_their_own() -> None:
    pair = twins("adamw")
    for without in (None, 1, None, 0, None):
        step_both(pair, without)
        assert_alike(pair)
    assert [pair[1].state[param]["step"].item() for param in pair[1].param_groups[0]["params"]] == [4, 4, 5]


def test_random_numbers_go_by_counts_on_the_device() -> None:
    """Also of parameters that were not always stepped together."""
    for rule in ("momentum", "adamw"):
        pair = twins(rule, state_dtype=torch.bfloat16, seed=3)
        pair[1].param_groups[0]["capturable"] = True
        for without in (None, 1, None, 0, None):
            step_both(pair, without)
            assert_alike(pair)


def test_a_step_count_that_is_set_is_used() -> None:
    pair = twins("adam")
    step_both(pair)
    for optimizer in pair:
        optimizer.state[optimizer.param_groups[0]["params"][1]]["step"].fill_(7)
    step_both(pair)
    assert_alike(pair)


@pytest.mark.parametrize("rebuild", ["late gradient", "set", "group"])
def test_counts_and_staging_buffers_never_move(rebuild: str) -> None:
    """A graph that was captured goes on with the memory that it saw."""
    params = [nn.Parameter(torch.randn(7)), nn.Parameter(torch.randn(4, 6)[:, ::2]), nn.Parameter(torch.randn(3))]
    optimizer = optim.Adam(params, capturable=True)

    def step(*without: int) -> None:
        for index, param in enumerate(params):
            param.grad = None if index in without else torch.ones_like(param)
        optimizer.step()

    step(2)
    plan = optimizer._stepper.plans[0]
    counts = [optimizer.state[param]["step"] for param in params[:2]]
    staged = [(entry.weight.data_ptr(), entry.gradient.data_ptr()) for entry in plan.entries if entry.staged]
    assert len(staged) == 1
    match rebuild:
        case "late gradient":
            step()
        case "set":
            counts[0].fill_(1)
            step(2)
        case "group":
            optimizer.add_param_group({"params": [nn.Parameter(torch.randn(2))]})
            optimizer.param_groups[1]["params"][0].grad = torch.ones(2)
            step(2)
    after = optimizer._stepper.plans[0]
    assert after is not plan
    assert all(optimizer.state[param]["step"] is count for param, count in zip(params, counts, strict=False))
    assert [count.item() for count in counts] == [2, 2]
    assert staged == [(entry.weight.data_ptr(), entry.gradient.data_ptr()) for entry in after.entries if entry.staged]


def test_a_count_that_is_set_after_a_late_gradient_is_used_for_that_parameter_alone() -> None:
    pair = twins("adam")
    step_both(pair, without=2)
    step_both(pair)
    for optimizer in pair:
        optimizer.state[optimizer.param_groups[0]["params"][0]]["step"].fill_(100)
    step_both(pair)
    assert_alike(pair)


def test_a_state_dict_moves_between_capturable_and_not() -> None:
    pair = twins("amsgrad")
    step_both(pair)
    saved = [optimizer.state_dict() for optimizer in pair]
    for optimizer, other in zip(pair, saved[::-1], strict=True):
        kept = [{**group} for group in optimizer.param_groups]
        optimizer.load_state_dict(other)
        for group, before in zip(optimizer.param_groups, kept, strict=True):
            group.update({key: value for key, value in before.items() if key != "params"})
    step_both(pair)
    assert_alike(pair)


@pytest.mark.parametrize("key", ["lr", "l1", "weight_decay"])
def test_a_tensor_elsewhere_is_refused(key: str) -> None:
    optimizer = twins("adamw")[1]
    (param, *_) = optimizer.param_groups[0]["params"]
    param.grad = torch.ones_like(param)
    before = param.detach().clone()
    optimizer.param_groups[0][key] = torch.tensor(0.1, device="meta")
    with pytest.raises((TypeError, ValueError), match=f"{key} .*'?meta"):
        optimizer.step()
    assert torch.equal(param, before)
