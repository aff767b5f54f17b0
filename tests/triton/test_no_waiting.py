"""The host waits for no device in a step, as simulated devices see it: what torch would do there, they report.

Nothing is computed here, so any Triton will do. On a device `tests/gpu/test_no_waiting.py` asks torch itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regkernels
from regkernels import attach_prox, prox
from tests.support import cases
from tests.support.simulated import Simulation, Waited, devices

DEVICE = torch.device("cuda", 1)  # which is not the current one
STRENGTHS = {"lr": 1e-2, "l1": 1e-3, "weight_decay": 0.1}


@pytest.fixture
def simulation() -> Iterator[Simulation]:
    with devices(2) as simulated:
        yield simulated


def parameters(*sizes: int, device: torch.device = DEVICE, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(size, dtype=dtype, device=device)) for size in sizes or (5, 70, 300)]


def give_gradients(params: list[nn.Parameter]) -> None:
    for param in params:
        param.grad = torch.zeros_like(param)


def on_device(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full((), value, dtype=dtype, device=DEVICE)


def assert_no_waiting(simulation: Simulation, optimizer: torch.optim.Optimizer, params: list[nn.Parameter]) -> None:
    """Two first steps, one of which is without some gradients, and further ones with gradients in other memory."""
    for number in range(5):
        give_gradients(params)
        if number in (1, 4):
            params[0].grad = None
        with simulation.no_waiting():
            optimizer.step()
            getattr(optimizer, "stats", None)


def test_what_would_wait_is_seen(simulation: Simulation) -> None:
    there, pinned = torch.zeros(3, device=DEVICE), torch.zeros(3).pin_memory()
    waiting: dict[str, Callable[[], object]] = {
        "item": lambda: there[0].item(),
        "float": lambda: float(there[0]),
        "bool": lambda: bool(there[0]),
        "tolist": lambda: there.tolist(),
        "cpu": lambda: there.cpu(),
        "as_tensor": lambda: torch.as_tensor(1.0, device=DEVICE),
        "tensor": lambda: torch.tensor([1.0], device=DEVICE),
        "to": lambda: torch.zeros(3).to(DEVICE, non_blocking=True),
        "blocking copy": lambda: there.copy_(pinned),
        "assignment": lambda: there.__setitem__(0, 1.0),
        "index": lambda: there[torch.zeros(1, dtype=torch.int64)],
        "mask": lambda: there[there == 0],
        "nonzero": lambda: there.nonzero(),
        "equal": lambda: torch.equal(there, there),
    }
    for wait in waiting.values():
        with simulation.no_waiting(), pytest.raises(Waited):
            wait()
    with simulation.no_waiting():
        there.copy_(pinned, non_blocking=True)
        pinned.copy_(there, non_blocking=True)
        there[0].fill_(1.0)
        there[1:] += 2.0 * there[1] + torch.ones(())
        there.to("cuda:0")


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stats": {"stats": True},
    "max_grad_norm": {"max_grad_norm": 0.5},
    "skip_nonfinite": {"skip_nonfinite": True},
    "everything": {"stats": True, "max_grad_norm": 0.5, "skip_nonfinite": True},
}


WHICH = [(rule, "everything") for rule in cases.RULES] + [("adamw", what) for what in OPTIONS if what != "everything"]


@pytest.mark.parametrize("tensors", [False, True])
@pytest.mark.parametrize(("rule", "what"), WHICH)
def test_steps(rule: str, what: str, tensors: bool, simulation: Simulation) -> None:
    name, own = cases.RULES[rule]
    strengths: dict[str, Any] = {k: on_device(v, torch.float64) for k, v in STRENGTHS.items()} if tensors else STRENGTHS
    capturable = {"capturable": True} if tensors and name in ("Adam", "AdamW", "RAdam") else {}
    options = {**own, **strengths, **capturable, **OPTIONS[what]}
    params = parameters()
    assert_no_waiting(simulation, getattr(regkernels.optim, name)(params, **options), params)


@pytest.mark.parametrize("amp", ["found_inf", "grad_scale"])
@pytest.mark.parametrize("what", ["plain", "everything"])
def test_steps_of_a_scaler(what: str, amp: str, simulation: Simulation) -> None:
    """Which sets these attributes, one-element tensors on the device."""
    params = parameters()
    optimizer: Any = regkernels.optim.AdamW(params, amp_scaling=True, **STRENGTHS, **OPTIONS[what])
    optimizer.found_inf = on_device(0.0).reshape(1)
    optimizer.grad_scale = on_device(2.0).reshape(1) if amp == "grad_scale" else None
    assert_no_waiting(simulation, optimizer, params)


@pytest.mark.parametrize("what", ["plain", "everything"])
def test_steps_of_several_groups_and_devices(what: str, simulation: Simulation) -> None:
    every = [parameters(), parameters(dtype=torch.bfloat16), parameters(40, device=torch.device("cuda:0"))]
    params = [param for group in every for param in group]
    groups = [{"params": group, "l1": 1e-3 * number} for number, group in enumerate(every)]
    assert_no_waiting(simulation, regkernels.optim.AdamW(groups, lr=1e-2, **OPTIONS[what]), params)


MEMORY: dict[str, dict[str, Any]] = {
    "bfloat16 states": {"state_dtype": torch.bfloat16},
    "remainder": {"param_rounding": "remainder"},
    "stochastic": {"param_rounding": "stochastic"},
    "capturable": {"param_rounding": "stochastic", "capturable": True},
    "groups": {"group_l1": 1e-3, "group_dim": 0},
    "max_norm": {"max_norm": 1.0, "group_dim": 0},
}


@pytest.mark.parametrize("memory", MEMORY)
def test_steps_with_other_memory_and_groups(memory: str, simulation: Simulation) -> None:
    params = parameters((3, 4), (5, 6), (7, 8), dtype=torch.bfloat16)  # type: ignore[arg-type]
    own = {"l1": 0.0} if "group_dim" in MEMORY[memory] else {}
    options = {**STRENGTHS, **own, **MEMORY[memory], **OPTIONS["everything"]}
    assert_no_waiting(simulation, regkernels.optim.AdamW(params, **options), params)


ATTACHED: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw, fused": lambda params: torch.optim.AdamW(params, fused=True),
    "adamw, capturable": lambda params: torch.optim.AdamW(params, capturable=True, foreach=True),
    "nadam, capturable": lambda params: torch.optim.NAdam(params, capturable=True, foreach=True),
    "radam, capturable": lambda params: torch.optim.RAdam(params, capturable=True, foreach=True),
    "adamw, lr on the device": lambda params: torch.optim.AdamW(params, lr=on_device(1e-2), capturable=True),
    "adamw": lambda params: torch.optim.AdamW(params, foreach=True),
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, foreach=True),
}


@pytest.mark.parametrize("name", ATTACHED)
def test_steps_with_attach_prox(name: str, simulation: Simulation) -> None:
    params = parameters()
    optimizer = ATTACHED[name](params)
    attach_prox(optimizer, l1=1e-3, weight_decay=0.1)
    assert_no_waiting(simulation, optimizer, params)


@pytest.mark.parametrize("name", ["adamw, capturable", "nadam, capturable"])
def test_a_shrinkage_takes_no_operation_per_parameter(name: str, simulation: Simulation) -> None:
    """Although the host does not know which counts are equal, and each parameter has a row of its own."""
    operations = []
    for count in (3, 30):
        params = parameters(*range(1, count + 1))
        optimizer = ATTACHED[name](params)
        give_gradients(params)
        optimizer.step()
        handle = attach_prox(optimizer, l1=1e-3, weight_decay=0.1)
        before = simulation.operations
        with simulation.no_waiting():
            handle(optimizer, (), {})
        operations.append(simulation.operations - before)
    assert operations[0] == operations[1]


def test_penalties_and_operators(simulation: Simulation) -> None:
    """With their gradients, which autograd would ask for."""
    params = [param.detach() for param in parameters()]
    strength = on_device(0.1)
    with torch.cuda.device(DEVICE), simulation.no_waiting():
        regkernels.l1_penalty(params, 0.1)
        torch.ops.regkernels.penalty_gradient(strength, params, 0.1, 0.2)
        torch.ops.regkernels.penalty_slope(strength, params, "mcp", 0.1, 3.0)
        regkernels.elastic_net_penalty(params, strength, strength)
        regkernels.mcp_penalty(params, 0.1)
        regkernels.group_l1_penalty([param.view(5, -1) for param in params], 0.1, dim=0)
        prox.soft_threshold_(params[0], 0.1)
        prox.soft_threshold(params[1][::2], 0.1)
