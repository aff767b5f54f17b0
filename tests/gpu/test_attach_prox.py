"""`attach_prox` on a device: the reference's bits after torch's own steps, graphs, and no waiting."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regkernels as rk
from regkernels import backends, reference
from regkernels.attach.shrinkage import Item, Shrinkage
from regkernels.table.hyper import Hyper
from tests.gpu.test_graphs import captured, warm_up
from tests.support import cases, engine

pytestmark = pytest.mark.gpu

OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "adam": ("Adam", {}),
    "adam, capturable": ("Adam", {"capturable": True, "amsgrad": True}),
    "adamw, fused": ("AdamW", {"fused": True}),
    "nadam, capturable": ("NAdam", {"capturable": True}),
    "radam, capturable": ("RAdam", {"capturable": True}),
    "adamax": ("Adamax", {}),
    "rmsprop, centered": ("RMSprop", {"centered": True, "eps": 1e-3}),
    "adagrad": ("Adagrad", {"lr_decay": 0.1}),
    "sgd": ("SGD", {"momentum": 0.9}),
}
SHAPES = ((5,), (17, 33), (8193,))


def made(name: str, params: list[nn.Parameter], **options: Any) -> torch.optim.Optimizer:
    kind, own = OPTIMIZERS[name]
    return getattr(torch.optim, kind)(params, **{"lr": 0.01, **own, **options})


def parameters(device: torch.device) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(device)) for shape in SHAPES]


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("metric", reference.METRICS)
def test_the_kernels_give_the_references_bits(metric: str, dtype: torch.dtype, setting: engine.Setting) -> None:
    device = torch.device(setting.device)
    row = Hyper(
        lr=0.0123, threshold=0.01, threshold_per_step=0.37, shrink_per_step=0.21, inverse_sqrt_bias2=1.7, eps=1e-3
    )
    for size in (0, 1, 255, 8192, 8193):
        for kind in dict.fromkeys([dtype, reference.compute_dtype(dtype)]):
            weight = torch.randn(size).mul(0.02).to(dtype)
            operands = [torch.rand(size).to(kind) for _ in range(reference.METRICS[metric].operands)]
            expected, got = weight.clone(), weight.to(device, copy=True)
            reference.proximal_(metric, expected, operands, row)
            shrinkage = Shrinkage(device)
            with engine.active(setting):
                shrinkage.load([Item(got, {}, (0, 0), metric, tuple(operand.to(device) for operand in operands), 0)])
                backends.backend_for(device).proximal(shrinkage.batch([row]))
                shrinkage.save()
            engine.assert_same_bits(got.cpu(), expected, f"{size} elements, operands {kind}")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_with_counts_on_the_host(name: str, cuda: torch.device) -> None:
    """Against torch's step without L1, and the same hook with nothing on the device but the weights."""
    params = parameters(cuda)
    optimizer = made(name, params)
    rk.attach_prox(optimizer, l1=0.3, weight_decay=0.7)
    for step in range(8):
        for number, param in enumerate(params):
            param.grad = None if number == 1 and step % 3 == 0 else torch.randn_like(param)
        plain_params, plain = copy.deepcopy((params, optimizer))  # copies have no hooks
        for param, twin in zip(params, plain_params, strict=True):
            twin.grad = None if param.grad is None else param.grad.clone()
        optimizer.step()
        plain.step()
        on_host, host = on_cpu(plain_params, plain)
        rk.attach_prox(host)._shrink(host)
        for param, twin in zip(params, on_host, strict=True):
            torch.testing.assert_close(param.detach().cpu(), twin.detach(), rtol=1e-6, atol=1e-8)
    assert any((param == 0).any() for param in params)


def on_cpu(params: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> tuple[list[nn.Parameter], Any]:
    """Copies of parameters with gradients, and an optimizer that has made the same steps."""
    copies = []
    for param in params:
        copies.append(nn.Parameter(param.detach().cpu()))
        copies[-1].grad = None if param.grad is None else param.grad.cpu()
    groups = [
        {key: value for key, value in optimizer.param_groups[0].items() if key not in ("params", "capturable", "fused")}
    ]
    groups[0]["params"] = copies
    host = type(optimizer)(groups)
    for param, twin in zip(params, copies, strict=True):
        for key, value in optimizer.state.get(param, {}).items():
            host.state[twin][key] = value.cpu() if isinstance(value, Tensor) else value
    return copies, host


@pytest.mark.parametrize("name", ["adam, capturable", "nadam, capturable", "radam, capturable"])
def test_a_captured_step_follows_lr_and_l1(name: str, cuda: torch.device) -> None:
    outcomes = []
    for graphed in (False, True):
        params = parameters(cuda)
        lr, l1 = (torch.tensor(value, device=cuda) for value in (0.01, 0.3))
        optimizer = made(name, params, lr=lr)
        rk.attach_prox(optimizer, l1=l1)
        for param in params:
            param.grad = torch.ones_like(param)
        if graphed:
            warm_up(optimizer.step)
            step = captured(optimizer.step).replay
        else:
            for _ in range(3):
                optimizer.step()
            step = optimizer.step
        for number in range(5):
            lr.fill_(0.01 / (1 + number))
            l1.fill_(0.1 * number)
            for param in params:
                param.grad.copy_(torch.linspace(-1, 1, param.numel()).view(param.shape) + number)
            step()
        outcomes.append([param.detach().cpu() for param in params])
    for one, other in zip(*outcomes, strict=True):
        engine.assert_same_bits(other, one)


@pytest.mark.parametrize("name", ["adam, capturable", "adamw, fused", "sgd"])
def test_the_host_does_not_wait(name: str, cuda: torch.device) -> None:
    params = parameters(cuda)
    optimizer = made(name, params)
    rk.attach_prox(optimizer, l1=0.3)
    for param in params:
        param.grad = torch.ones_like(param)
    for _ in range(2):
        optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
