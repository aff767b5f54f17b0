"""`attach_prox` and what is around it: saving, copies, removal, torch.compile."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regkernels as rk
from regkernels import attach_prox
from tests.support import training
from tests.support.attaching import closed_form, parameter

pytestmark = pytest.mark.interpreted

# --- saved, loaded, copied ---


def trained(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(rk.param_groups(model, l1=0.2), lr=0.01)
    attach_prox(optimizer, **options)
    training.train(optimizer, model, range(3))
    return optimizer


def test_a_run_goes_on_from_a_checkpoint() -> None:
    model, other = training.twins(training.network())
    optimizer = trained(model, weight_decay=0.1)
    optimizer.param_groups[0]["l1"] = 0.35
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    fresh = torch.optim.Adam(rk.param_groups(other), lr=0.5)
    attach_prox(fresh, l1=3.0)
    other.load_state_dict(saved["model"])
    fresh.load_state_dict(saved["optimizer"])
    assert [(group["l1"], group["prox_weight_decay"]) for group in fresh.param_groups] == [(0.35, 0.1), (0.0, 0.1)]
    for opt, net in ((optimizer, model), (fresh, other)):
        training.train(opt, net, range(3, 8))
    training.assert_equal(model, other)
    assert any((param == 0).any() for param in model.parameters())


def test_a_checkpoint_without_strengths_leaves_them_alone() -> None:
    model = training.network()
    optimizer = trained(model, weight_decay=0.1)
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        del group["l1"], group["prox_weight_decay"]
    optimizer.load_state_dict(saved)
    assert [(group["l1"], group["prox_weight_decay"]) for group in optimizer.param_groups] == [(0.2, 0.1), (0.0, 0.1)]
    training.train(optimizer, model, range(3, 5))
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict({**saved, "param_groups": saved["param_groups"][:1]})


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copied", "pickled"]
)
def test_a_copy_has_the_strengths_and_is_attached_to_anew(duplicate: Callable[[Any], Any]) -> None:
    model = training.network()
    optimizer = trained(model)
    other, copied = duplicate((model, optimizer))
    plain, plain_copy = copy.deepcopy((other, copied))
    attach_prox(copied, l1=9.0)  # what the groups say counts
    for opt, net in ((optimizer, model), (copied, other), (plain_copy, plain)):
        training.train(opt, net, range(3, 8))
    training.assert_equal(model, other)
    assert not any((param == 0).any() for param in plain.parameters())


def test_removed_and_within_a_block() -> None:
    param = parameter(10)
    optimizer = torch.optim.SGD([{"params": [param], "l1": 0.5}], lr=0.1)
    param.grad = torch.zeros_like(param)
    with attach_prox(optimizer, l1=9.0, weight_decay=0.3) as handle:
        assert optimizer.param_groups[0]["prox_weight_decay"] == 0.3
        expected = closed_form(param.detach(), 0.05, 1.03)
        optimizer.step()
        torch.testing.assert_close(param.detach(), expected)
    optimizer.step()
    torch.testing.assert_close(param.detach(), expected)
    assert optimizer.param_groups[0]["l1"] == 0.5
    assert "prox_weight_decay" not in optimizer.param_groups[0]
    handle.remove()
    attach_prox(optimizer)
    optimizer.step()
    torch.testing.assert_close(param.detach(), closed_form(expected, 0.05))


def test_a_compiled_step_shrinks() -> None:
    torch._dynamo.reset()
    params = [parameter(10), parameter(10)]
    with torch.no_grad():
        params[1].copy_(params[0])
    for param, compiled in zip(params, (False, True), strict=True):
        optimizer = torch.optim.SGD([param], lr=0.1)
        attach_prox(optimizer, l1=0.5)
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for number in range(3):
            param.grad = torch.full_like(param, 0.1 * number)
            step()
    assert torch.equal(*params)
    torch._dynamo.reset()


@pytest.mark.interpreted
def test_a_metric_may_use_one_tensor_for_all_parameters() -> None:
    for capturable in (False, True):
        params = [nn.Parameter(torch.ones(4)) for _ in range(2)]
        optimizer = torch.optim.SGD(params, lr=0.0)
        optimizer.param_groups[0]["capturable"] = capturable
        step = torch.zeros(())

        def metric(param: Tensor, *_: Any, first: Tensor = params[0], step: Tensor = step) -> Tensor:
            return step.fill_(0.125 if param is first else 0.5)

        attach_prox(optimizer, l1=1.0, metric=metric)
        for param in params:
            param.grad = torch.zeros_like(param)
        optimizer.step()
        assert [param[0].item() for param in params] == [0.875, 0.5]
