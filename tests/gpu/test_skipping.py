"""Steps that are left out, and a scaler's scale, on a device: it decides, and the host does not wait for it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from regkernels import optim
from tests.gpu.test_no_waiting import no_waiting
from tests.support import engine
from tests.support.skipping import KINDS, RULES, Training, assert_same, copies

pytestmark = pytest.mark.gpu

NAN, INF = math.nan, math.inf
SOME = ("sgd", "dampening", "adamw", "rmsprop_both", "adagrad", "radam", "lion", "staged", "flat halves")


@pytest.mark.parametrize("kind", SOME)
def test_a_step_that_is_left_out_never_was(kind: str, device: torch.device) -> None:
    """The first, and one between; with sums and clipping, against a training that did not see them."""
    options = {"stats": True, "max_grad_norm": 5.0}
    ours, other = (
        Training(KINDS[kind], device, skip_nonfinite=True, **options),
        Training(KINDS[kind], device, **options),
    )
    for number, bad in enumerate((NAN, None, -INF, None)):
        ours.give(number, bad)
        with no_waiting(device):
            ours.optimizer.step()
            norm = ours.optimizer.stats.grad_norm
        if bad is None:
            other.step(number)
        assert norm.isfinite().item() is (bad is None)
        assert_same(ours.everything(), copies(other.everything()), f"step {number}")


@pytest.mark.parametrize("rule", ["dampening", "radam"])
def test_a_replayed_step_is_left_out_and_counted_as_it_finds_its_gradients(rule: str, cuda: torch.device) -> None:
    ours, other = (Training(RULES[rule], cuda, skip_nonfinite=True) for _ in range(2))
    for training in (ours, other):
        for group in training.optimizer.param_groups:
            group["capturable"] = True
        for number in range(2):
            training.step(number)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ours.optimizer.step()
    kept = [param.grad for param in ours.params]
    for number, bad in enumerate((None, NAN, None, INF, None), start=2):
        ours.give(number, bad)
        for old, param in zip(kept, ours.params, strict=True):
            old.copy_(param.grad)
        graph.replay()
        if bad is None:
            other.step(number)
        assert_same(ours.everything(), copies(other.everything()), f"step {number}")


@pytest.mark.parametrize("kind", ["dampening", "radam", "lion", "adamw, remainder", "staged"])
def test_a_scaler_whose_scale_the_kernel_divides_by(kind: str, cuda: torch.device) -> None:
    """The bits of the default path, through a growth and a skipped step; the host does not wait, as it does there."""
    ours, other = Training(KINDS[kind], cuda, amp_scaling=True), Training(KINDS[kind], cuda)
    scalers = [torch.amp.GradScaler("cuda", init_scale=256.0, growth_interval=2) for _ in range(2)]
    for number in range(6):
        for training, scaler in zip((ours, other), scalers, strict=True):
            scale = float(scaler.scale(torch.ones((), device=cuda)))
            training.give(number, INF if number in (0, 3) else None, scale)
        with no_waiting(cuda):
            scalers[0].step(ours.optimizer)
            scalers[0].update()
        scalers[1].step(other.optimizer)
        scalers[1].update()
        assert scalers[0].state_dict() == scalers[1].state_dict()
        assert_same(ours.everything(), copies(other.everything()), f"step {number}")


@pytest.mark.parametrize("on", ["cpu", "device"])
@pytest.mark.parametrize("rule", ["dampening", "adam"])
def test_parameters_on_two_devices_are_left_out_together(rule: str, on: str, cuda: torch.device) -> None:
    """Whichever has the bad gradient; the CPU's part waits for the device's."""
    params = [nn.Parameter(torch.ones(1000, device=device)) for device in ("cpu", cuda)]
    optimizer = engine.make(rule, [{"params": [param]} for param in params], skip_nonfinite=True, max_grad_norm=1.0)
    for bad in (None, NAN, None):
        before = copies({f"{index}": param for index, param in enumerate(params)})
        for param in params:
            param.grad = torch.ones_like(param)
        if bad is not None:
            params[on == "device"].grad[7] = bad
        optimizer.step()
        for index, param in enumerate(params):
            assert torch.equal(param.detach().cpu(), before[f"{index}"]) is (bad is not None)
    assert isinstance(optimizer, optim.Optimizer)
    assert torch.equal(*(param.detach().cpu() for param in params))
    steps = [state["step"].item() for state in optimizer.state.values() if "step" in state]
    assert steps and set(steps) == {2.0}
