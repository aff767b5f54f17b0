"""Proximal operators, proximal steps and reports of parameters that are spread over ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import regkernels as rk
from regkernels import prox
from tests.distributed import world


def _in_place(x: Tensor) -> Tensor:
    with torch.no_grad():
        result = x.detach().clone()
        version = result._version
        assert prox.soft_threshold_(result, 0.3) is result and result._version > version
    return result + 0 * x


# Of tensors of 7 rows; groups are rows.
OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "soft_threshold": lambda x: prox.soft_threshold(x, 0.3),
    "soft_threshold_": _in_place,
    "elastic_net": lambda x: prox.elastic_net(x, 0.3, 0.2),
    "weighted_l1": lambda x: prox.weighted_l1(x, 0.3, x.detach() ** 2),
    "box": lambda x: prox.box(x, -0.5, 0.5),
    "l_half": lambda x: prox.l_half(x, 0.3),
    "mcp": lambda x: prox.mcp(x, 0.3),
    "group_l1": lambda x: prox.group_l1(x, 0.3, l1=0.1),
    "unit_norm": prox.unit_norm,
}


def _operated(rank: int) -> list[Any]:
    mesh = init_device_mesh("cpu", (3,))
    found = []
    for name, operator in OPERATORS.items():
        for rows in (7, 2):  # 3, 3 and 1; 1, 1 and none
            whole = torch.randn(rows, 5, generator=torch.Generator().manual_seed(rows))
            for placement in (Shard(0), Replicate(), *([] if name in ("group_l1", "unit_norm") else [Shard(1)])):
                x = distribute_tensor(whole, mesh, [placement], src_data_rank=None).requires_grad_()
                result = operator(x)
                weights = distribute_tensor(whole.exp(), mesh, [placement], src_data_rank=None)
                (result.to_local() * weights.to_local()).sum().backward()
                assert (
                    result.placements == x.grad.placements == (placement,) and result.shape == x.grad.shape == x.shape
                )
                found.append((name, whole, result.detach().full_tensor(), x.grad.full_tensor()))
    return found


def test_operators_work_on_the_parts() -> None:
    for found in world.run(3, _operated):
        for name, whole, result, gradient in found:
            x = whole.clone().requires_grad_()
            expected = OPERATORS[name](x)
            (expected * whole.exp()).sum().backward()
            assert torch.equal(result, expected.detach()), name
            assert torch.equal(gradient, x.grad), name


# --- proximal steps after those of torch.optim ---

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.5),
    "Adam": lambda params: torch.optim.Adam(params, lr=0.1),
    "RMSprop": lambda params: torch.optim.RMSprop(params, lr=0.1, centered=True),
}


def _model() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 1))


def _shrink(model: nn.Module, name: str, spread: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Steps with made-up gradients."""
    generator = torch.Generator().manual_seed(4)
    optimizer = OPTIMIZERS[name](model.parameters())
    rk.attach_prox(optimizer, l1=0.2, weight_decay=0.1)
    for _ in range(3):
        for param in model.parameters():
            param.grad = spread(torch.randn(param.shape, generator=generator), param)
        version = next(model.parameters())._version
        optimizer.step()
        assert next(model.parameters())._version > version


def _shrunk(rank: int) -> Any:
    def spread(gradient: Tensor, like: Any) -> Tensor:
        return distribute_tensor(gradient, like.device_mesh, like.placements, src_data_rank=None)

    found = {}
    for name in OPTIMIZERS:
        model = fully_shard(_model())
        _shrink(model, name, spread)
        found[name] = [param.detach().full_tensor() for param in model.parameters()]
    model = _model()
    with torch.no_grad():
        model[0].weight[::2] = 0.0
        model[0].weight[:, 3] = 0.0
    return found, str(rk.sparsity_report(fully_shard(model))), str(rk.sparsity_report(model))


def test_proximal_steps_and_reports() -> None:
    for found, report, again in world.run(3, _shrunk):
        for name, weights in found.items():
            model = _model()
            _shrink(model, name, lambda gradient, _: gradient)
            assert all(map(torch.equal, weights, model.parameters())), name
            assert any((w == 0).any() for w in weights)
        model = _model()
        with torch.no_grad():
            model[0].weight[::2] = 0.0
            model[0].weight[:, 3] = 0.0
        assert report == again == str(rk.sparsity_report(model))


# --- what each rank would have to have all of ---


class _Interleaved(Shard):
    """As a later torch might cut tensors: every second row."""


def _refused(rank: int) -> list[tuple[str, str]]:
    mesh = init_device_mesh("cpu", (2,))
    x = distribute_tensor(torch.ones(6, 4), mesh, [Shard(0)], src_data_rank=None)
    partial = DTensor.from_local(torch.ones(3), mesh, x._spec.placements).sum(0)
    interleaved = DTensor.from_local(torch.ones(3, 4), mesh, [_Interleaved(0)])
    sharded = fully_shard(_model())
    tensors = [param.detach() ** 2 for param in sharded.parameters()]
    negative = distribute_tensor(torch.tensor([-1.0, 2.0]), mesh, [Shard(0)], src_data_rank=None)

    def gathered() -> None:
        sharded(torch.ones(1, 5))
        rk.l1_penalty(sharded, 1.0, tensors)

    def freed() -> None:
        loss = sharded(torch.ones(1, 5)).sum()
        penalty = rk.l1_penalty(sharded, 1.0)
        loss.backward()
        penalty.backward()

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(x)

    calls: dict[str, Callable[[], Any]] = {
        r"params\[1\] is a DTensor with placements \[P.*redistribute": lambda: rk.l2_penalty([x, partial], 1.0),
        r"params\[0\] is a DTensor .* of which _Interleaved is not known here": lambda: rk.l1_penalty(interleaved, 1.0),
        r"params\[0\] .*of which _Interleaved is not known here|parameter 0 .*of which _Interleaved": lambda: (
            rk.optim.SGD([nn.Parameter(interleaved)], lr=0.1)
        ),
        r"strength is a DTensor .*full_tensor": lambda: rk.huber_penalty(x, partial),
        r"weights\[0\] is a plain tensor.*distribute_tensor": lambda: rk.l1_penalty(x, 1.0, torch.ones(6, 4)),
        r"weights\[0\] is a DTensor with placements \[R": lambda: rk.l1_penalty(
            x, 1.0, x.redistribute(mesh, [Replicate()])
        ),
        r"params\[0\] a plain tensor. FSDP gathers": gathered,
        r"has no memory any more: FSDP has freed": freed,
        r"weights must be finite|on 1 other rank": lambda: rk.l1_penalty(negative, 1.0, negative),
        r"size=4 does not divide": lambda: rk.group_l1_penalty(x, 1.0, size=4),
        r"x is a DTensor with placements \[P": lambda: prox.l0(partial, 1.0),
        r"cut its groups \(dim=1, size=1\)": lambda: prox.group_l1(x, 1.0, dim=1),
        r"cut its groups \(dim='tensor'": lambda: prox.max_norm(x, 1.0, dim="tensor"),
        r"cut its groups \(dim=0, size=2\)": lambda: prox.unit_norm(x, size=2),
        r"weights is a plain tensor, and x a DTensor": lambda: prox.weighted_l1(x, 1.0, torch.ones(6, 4)),
        r"the model is spread over ranks by fully_shard; leave FlatParameters out": lambda: rk.FlatParameters(sharded),
        r"tensor 0 of shape \(6, 4\) is a DTensor": lambda: rk.FlatParameters([nn.Parameter(x)]),
        r"by fully_shard; take its full state dict": lambda: rk.compact(sharded),
        r"weight is a DTensor .*take its full state dict": lambda: rk.compact(Two()),
    }
    found = []
    for pattern, call in calls.items():
        try:
            call()
            found.append((pattern, "nothing was raised"))
        except (TypeError, ValueError, RuntimeError) as error:
            found.append((pattern, str(error)))
    return found


def test_what_cannot_be_done_with_a_part_is_refused_on_every_rank() -> None:
    for found in world.run(2, _refused):
        for pattern, message in found:
            with pytest.raises(ValueError, match=pattern):
                raise ValueError(message)


# --- compiled ---


def _compiled(rank: int) -> list[Any]:
    mesh = init_device_mesh("cpu", (2,))
    x = nn.Parameter(distribute_tensor(torch.arange(-5.0, 7.0).reshape(4, 3), mesh, [Shard(0)], src_data_rank=None))

    def loss() -> Tensor:
        return 2 * rk.l1_penalty(x, 0.3)

    found = []
    for function in (torch.compile(loss, backend="eager"), loss):
        value = function()
        (gradient,) = torch.autograd.grad(value, x)
        found.append((value.detach(), gradient.full_tensor()))
    torch._dynamo.reset()
    try:
        torch.compile(loss, backend="eager", fullgraph=True)()
        said = "nothing"
    except torch._dynamo.exc.Unsupported as error:
        said = str(error)
    return [*found, said]


def test_a_compiled_program_calls_them_between_its_graphs() -> None:
    for compiled, eager, said in world.run(2, _compiled):
        assert all(map(torch.equal, compiled, eager))
        assert "for fullgraph=True, compile the loss alone" in said
