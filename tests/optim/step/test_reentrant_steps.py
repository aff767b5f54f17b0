"""Code of the user's that runs while a step looks at what it is to update: nothing is read that is no longer there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regkernels import backends, optim
from tests.optim.step.test_hostile_memory import BACKENDS, SIZE, trained

pytestmark = pytest.mark.attacks


class Meddler(Tensor):
    """Runs something when it is asked whether it is negated."""

    meddle: Callable[[], None]

    def is_neg(self) -> bool:
        type(self).meddle()
        return super().is_neg()


@pytest.mark.parametrize("what", ["list", "gradients", "weight"])
def test_a_gradient_that_meddles_while_it_is_looked_at(what: str) -> None:
    params, optimizer = trained()
    before = [param.detach().clone() for param in params]

    def meddle() -> None:
        if what == "list":
            optimizer.param_groups[0]["params"].clear()
        elif what == "gradients":
            for param in params:
                param.grad = None
        elif params[0][0] != 5:  # once
            params[0].data = torch.full((SIZE,), 5.0)

    Meddler.meddle = staticmethod(meddle)
    params[1].grad = torch.ones(SIZE).as_subclass(Meddler)
    optimizer.step()
    if what == "list":  # nothing is left to be stepped
        assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))
    elif what == "weight":  # the step is that of the new weight
        assert torch.allclose(params[0], torch.full((SIZE,), 5.0 * (1 - 0.1 * 0.01) - 0.1), atol=1e-5)
    optimizer.param_groups[0]["params"][:] = params
    for param in params:
        param.grad = torch.ones(SIZE)
    optimizer.step()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("strided", [False, True])
def test_a_learning_rate_that_drops_the_gradients_drops_them_after_the_step(strided: bool, backend: str) -> None:
    """What is a gradient when the step begins stays one to its end, as where another thread drops it while a kernel runs."""
    params: list[nn.Parameter] = []
    count, asked, elsewhere = 1 << 16, 0, []

    class Dropping(Tensor):
        def item(self) -> Any:
            nonlocal asked
            asked += 1
            if asked == 2:  # first it is checked, before the step looks at gradients
                for param in params:
                    param.grad = None
                elsewhere.append(
                    [torch.full((count,), torch.nan) for _ in range(8)]
                )  # in their memory, if that is free
            return super().item()

    def made() -> list[nn.Parameter]:
        return [nn.Parameter(torch.ones(count, 2)[:, 0] if strided else torch.ones(count)) for _ in range(3)]

    others = made()
    params.extend(made())
    with backends.use(backend):
        optimizer = optim.SGD(params, lr=torch.tensor(0.1, dtype=torch.float64).as_subclass(Dropping))
        other = optim.SGD(others, lr=0.1)
        for _ in range(3):
            for param in (*params, *others):
                param.grad = torch.full((count,), 3.0)
            asked = 0
            optimizer.step()
            other.step()
            assert all(param.grad is None for param in params)
            assert all(torch.equal(a, b) for a, b in zip(params, others, strict=True))


def test_a_step_within_a_step_is_refused() -> None:
    class Stepping(Tensor):
        def item(self) -> Any:
            if param.grad is not None:  # not when it is looked at by the constructor
                optimizer.step()
            return super().item()

    param = nn.Parameter(torch.ones(3))
    optimizer = optim.SGD([param], lr=torch.tensor(0.1).as_subclass(Stepping))
    param.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match="called by something that this very step was looking at"):
        optimizer.step()
    assert torch.equal(param, torch.ones(3))
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.step()
    assert torch.equal(param, torch.full((3,), 0.5))


def test_closures_and_hooks_may_step() -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer = optim.SGD([param], lr=0.125)
    param.grad = torch.ones(3)
    inner = []

    def hook(*_: Any) -> None:
        if len(inner) < 2:
            inner.append(1)
            optimizer.step()

    optimizer.register_step_pre_hook(hook)
    optimizer.step(lambda: optimizer.step() or 0.0)  # type: ignore[func-returns-value]
    assert torch.equal(param, torch.full((3,), 0.5))  # two by the hook, the closure's, and its own
