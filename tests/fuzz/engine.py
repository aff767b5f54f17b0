"""Trains by a plan, and says who computes and how."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import regkernels
from regkernels import optim
from regkernels.optim.options import Common
from tests.fuzz import strategies
from tests.fuzz.strategies import Boxed, Parameter, Plan
from tests.support import cases, engine
from tests.support.penalised_cases import some_weights

# --- tensors ---


def _special(x: Tensor) -> Tensor:
    values = cases.special_values(x.dtype)
    return torch.where(torch.rand(x.shape) < 0.5, values[torch.randint(len(values), x.shape)], x)


VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "ordinary": lambda x: x,
    "sparse": lambda x: torch.where(torch.rand(x.shape) < 0.5, torch.zeros_like(x), x),
    "small": lambda x: x * torch.finfo(x.dtype).tiny * 4,
    "large": lambda x: x * torch.finfo(x.dtype).max ** 0.5,
    "special": _special,
}


def values(param: Parameter, layout: str) -> Tensor:
    """Random numbers, in memory as ``layout`` says."""
    if layout == "expanded":
        return values(param._replace(shape=()), "contiguous").expand(param.shape)
    real = param.dtype.to_real()
    parts = [VALUES[param.values](torch.randn(param.shape, dtype=torch.float64).to(real)) for _ in range(2)]
    result = torch.complex(*parts) if param.dtype.is_complex else parts[0]
    return cases.LAYOUTS[layout](result)


class Tensors:
    """The parameters of a plan, and their gradients in each step: the same for everyone who trains by it."""

    def __init__(self, plan: Plan) -> None:
        torch.manual_seed(plan.seed)
        self.plan = plan
        listed = [param for group in plan.groups for param in group.params]
        self.weights = [values(param, param.layout) for param in listed]
        self.gradients = [
            [None if n in step.missing else values(param, param.of_gradient) for n, param in enumerate(listed)]
            for step in plan.steps
        ]

    def groups(self, make: Callable[[Tensor], Tensor]) -> tuple[list[dict[str, Any]], list[Tensor]]:
        """Param groups of new parameters, and these."""
        params = [make(weight) for weight in self.weights]
        ahead = iter(params)
        groups = [{"params": [next(ahead) for _ in group.params]} for group in self.plan.groups]
        for group, planned in zip(groups, self.plan.groups, strict=True):
            group.update(given(planned.options, group["params"]))
        return groups, params


def given(options: dict[str, Any], params: list[Tensor]) -> dict[str, Any]:
    """Options as an optimizer takes them."""
    found = {key: torch.tensor(v.value) if isinstance(v, Boxed) else v for key, v in options.items()}
    if found.get("l1_weights") == strategies.WEIGHTS:
        found["l1_weights"] = [some_weights(param.detach()) for param in params]
    return found


def parameter(weight: Tensor, layout: str) -> nn.Parameter:
    return nn.Parameter(cases.LAYOUTS[layout](weight))


# --- who computes ---


def train(plan: Plan, setting: engine.Setting, how: str = "plain", library: ModuleType = optim) -> list[engine.Outcome]:
    """What there is after each step."""
    tensors = Tensors(plan)
    layouts = iter([param.layout for group in plan.groups for param in group.params])
    groups, params = tensors.groups(lambda weight: parameter(weight, next(layouts)))
    around = [cases.surroundings(param.detach()) for param in params]
    with engine.active(setting):
        found = [engine.snapshot(optimizer) for optimizer in HOW[how](plan, tensors, groups, params, library)]
    if how != "flat":
        for param, before in zip(params, around, strict=True):
            engine.assert_same_bits(cases.surroundings(param.detach()), before, "what lies around a parameter")
    return found


Training = Iterator[torch.optim.Optimizer]


def plain(plan: Plan, tensors: Tensors, groups: Any, params: list[Tensor], library: ModuleType = optim) -> Training:
    options = {
        key: value for key, value in plan.options.items() if library is optim or key not in Common.__annotations__
    }
    optimizer = getattr(library, plan.rule)(groups, **options)
    for step, gradients in zip(plan.steps, tensors.gradients, strict=True):
        _change(optimizer, step)
        for param, gradient in zip(params, gradients, strict=True):
            param.grad = gradient
        optimizer.step()
        yield optimizer


def _closure(plan: Plan, tensors: Tensors, groups: Any, params: list[Tensor], library: ModuleType) -> Training:
    """Gradients appear within the step."""
    optimizer = getattr(library, plan.rule)(groups, **plan.options)
    for step, gradients in zip(plan.steps, tensors.gradients, strict=True):
        _change(optimizer, step)
        optimizer.zero_grad()
        assert optimizer.step(lambda gradients=gradients: _give(params, gradients)) == 7.0
        yield optimizer


def _give(params: list[Tensor], gradients: list[Tensor | None]) -> float:
    for param, gradient in zip(params, gradients, strict=True):
        param.grad = gradient
    return 7.0


def _flat(plan: Plan, tensors: Tensors, groups: Any, params: list[Tensor], library: ModuleType) -> Training:
    """Gradients are written into the buffers, or set beside them; where there is none there must be none."""
    regkernels.FlatParameters(groups) if params else None
    optimizer = getattr(library, plan.rule)(groups, **plan.options)
    for number, (step, gradients) in enumerate(zip(plan.steps, tensors.gradients, strict=True)):
        _change(optimizer, step)
        optimizer.zero_grad()
        for position, (param, gradient) in enumerate(zip(params, gradients, strict=True)):
            if gradient is None or (number + position) % 3 == 0:
                param.grad = gradient
            else:
                param.grad.copy_(gradient)
        optimizer.step()
        yield optimizer


def _offload(plan: Plan, tensors: Tensors, groups: Any, params: list[Tensor], library: ModuleType) -> Training:
    optimizer = optim.CPUOffload(groups, getattr(library, plan.rule), **plan.options)
    for step, gradients in zip(plan.steps, tensors.gradients, strict=True):
        _change(optimizer, step)
        _give(params, gradients)
        optimizer.step()
        yield optimizer


def _backward(plan: Plan, tensors: Tensors, groups: Any, params: list[Tensor], library: ModuleType) -> Training:
    """The loss is linear in the weights, so that its gradients are the plan's."""
    optimizer = getattr(library, plan.rule)(groups, **plan.options)
    optim.step_in_backward(optimizer, bucket_bytes=100)
    for step, gradients in zip(plan.steps, tensors.gradients, strict=True):
        _change(optimizer, step)
        having = [(param, gradient) for param, gradient in zip(params, gradients, strict=True) if gradient is not None]
        if having:
            torch.autograd.backward([param for param, _ in having], [gradient for _, gradient in having])
        assert all(param.grad is None for param in params)
        yield optimizer


def _change(optimizer: torch.optim.Optimizer, step: strategies.Step) -> None:
    for index, options in step.changes.items():
        group = optimizer.param_groups[index]
        group.update(given(options, group["params"]))


HOW = {"plain": plain, "closure": _closure, "flat": _flat, "offload": _offload, "backward": _backward}
