"""Frozen parameters may be what no optimizer can update: quantised, expanded, sparse. They are looked at when they are trained."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from regkernels import FlatParameters, attach_prox, backends, optim, param_groups

OPTIMIZERS = [optim.AdamW, optim.Adam, optim.SGD, optim.RMSprop, optim.Adagrad, optim.RAdam, optim.Lion]
FROZEN: dict[str, Callable[[], Tensor]] = {
    "uint8": lambda: torch.ones(4, 3, dtype=torch.uint8),
    "int8": lambda: torch.ones(4, 3, dtype=torch.int8),
    "float8": lambda: torch.ones(4, 3).to(torch.float8_e4m3fn),
    "expanded": lambda: torch.ones(3).expand(4, 3),
    "sparse": lambda: torch.eye(4).to_sparse(),
    "csr": lambda: torch.eye(4).to_sparse_csr(),
    "meta": lambda: torch.ones(4, 3, device="meta"),
}


def _frozen(kind: str) -> nn.Parameter:
    return nn.Parameter(FROZEN[kind](), requires_grad=False)


@pytest.mark.parametrize("kind", FROZEN)
@pytest.mark.parametrize("make", OPTIMIZERS)
def test_frozen_parameters_are_left_alone(make: type[optim.Optimizer], kind: str) -> None:
    """The trained one is stepped as if it were alone, also after saving and loading."""
    frozen = _frozen(kind)
    trained, alone = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(4, 3))
    groups = [{"params": [trained]}, {"params": [frozen]}] if kind == "meta" else [frozen, trained]
    if kind == "meta":
        frozen.grad = None
        groups = [trained]
    optimizer, other = make(groups, lr=0.1, l1=0.01), make([alone], lr=0.1, l1=0.01)
    for step in range(4):
        for own, param in ((optimizer, trained), (other, alone)):
            param.grad = torch.full((4, 3), 0.5)
            own.step()
        if step == 1:
            optimizer.load_state_dict(optimizer.state_dict())
    assert torch.equal(trained, alone)
    assert frozen not in optimizer.state
    optimizer.zero_grad()


def test_a_frozen_parameter_is_looked_at_when_it_is_trained() -> None:
    frozen, trained = nn.Parameter(torch.ones(3).expand(4, 3), requires_grad=False), nn.Parameter(torch.ones(3))
    optimizer = optim.AdamW([trained, frozen], lr=0.1)
    trained.grad = torch.ones(3)
    optimizer.step()
    before = trained.detach().clone()
    frozen.requires_grad_(True).grad = torch.ones(4, 3)
    with pytest.raises(ValueError, match="parameter 1 of param group 0 is expanded"):
        optimizer.step()
    assert torch.equal(trained, before)
    frozen.data = torch.ones(4, 3)
    optimizer.step()
    assert (frozen < 1).all()


@pytest.mark.parametrize("kind", FROZEN)
def test_what_requires_a_gradient_is_refused_by_the_constructor(kind: str) -> None:
    if kind == "meta" or not FROZEN[kind]().is_floating_point():
        return  # torch makes none that requires a gradient, or the step says it
    with pytest.raises((TypeError, ValueError), match="parameter 0 of param group 0"):
        optim.AdamW([nn.Parameter(FROZEN[kind]())])


@pytest.mark.parametrize("kind", [kind for kind in FROZEN if kind != "meta"])
def test_frozen_parameters_elsewhere(kind: str) -> None:
    """Beside an adapter: param_groups, FlatParameters, and an optimizer of torch's with its shrinkage."""
    model = nn.Module()
    model.base, model.adapter = _frozen(kind), nn.Parameter(torch.ones(4, 3))
    groups = param_groups(model, l1=0.1)
    optimizer = torch.optim.SGD([model.base, model.adapter], lr=0.1)
    attach_prox(optimizer, l1=1.0)
    FlatParameters(model)
    model.adapter.grad.fill_(1.0)
    optimizer.step()
    torch.testing.assert_close(model.adapter.detach(), torch.full((4, 3), 0.8))
    optim.SGD(groups, lr=0.1).step()
    torch.testing.assert_close(model.adapter.detach(), torch.full((4, 3), 0.69))


@pytest.mark.parametrize("backend", backends.usable())
def test_other_backends_leave_them_alone(backend: str) -> None:
    trained = nn.Parameter(torch.ones(4))
    with backends.use(backend):
        optimizer = optim.SGD([_frozen("int8"), trained], lr=0.5)
        for _ in range(2):
            trained.grad = torch.ones(4)
            optimizer.step()
    assert torch.equal(trained, torch.zeros(4))
