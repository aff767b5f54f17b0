"""Conversions of a module that swap its tensors, as `torch.__future__.set_swap_module_params_on_conversion` asks for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from regkernels import FlatParameters, optim

pytestmark = pytest.mark.attacks


@pytest.fixture(autouse=True)
def _swapping() -> Iterator[None]:
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


def test_a_module_is_converted_after_steps() -> None:
    """As without swapping: weights and gradients are converted, and steps go on with them."""

    def trained() -> tuple[nn.Linear, optim.SGD]:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            for param in model.parameters():
                param.grad = torch.ones_like(param)
            optimizer.step()
        optimizer.step()  # with gradients that it has seen
        return model, optimizer

    (model, optimizer), (other, of_other) = trained(), trained()
    other.double()
    torch.__future__.set_swap_module_params_on_conversion(True)
    model.double()
    for step in (optimizer, of_other):
        step.step()
    for param, expected in zip(model.parameters(), other.parameters(), strict=True):
        assert param.dtype == torch.float64 and param.grad is not None and param.grad.dtype == torch.float64
        assert torch.equal(param, expected)


def test_gradients_may_be_swapped_for_negated_ones() -> None:
    """Which the step has to notice: the object is the same."""
    param = nn.Parameter(torch.zeros(1))
    optimizer = optim.SGD([param], lr=1.0)
    param.grad = torch.ones(1)
    for _ in range(2):
        optimizer.step()
    negated = torch.view_as_complex(torch.tensor([[0.0, 1.0]])).conj().imag
    assert negated.is_neg() and negated.item() == -1
    grad, param.grad = param.grad, None  # torch refuses to swap what is in two places
    torch.utils.swap_tensors(grad, negated)
    param.grad = grad
    optimizer.step()
    assert param.item() == -1.0


def test_a_module_in_flat_buffers_is_refused_before_anything_is_converted() -> None:
    model = nn.Linear(3, 2)
    flat = FlatParameters(model)
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    torch.__future__.set_swap_module_params_on_conversion(True)
    with pytest.raises(RuntimeError, match=r"Couldn't swap Linear\.weight"):
        model.double()
    for name, param in model.named_parameters():
        assert param.dtype == torch.float32 and torch.equal(param, before[name]) and param.grad is not None
    flat.zero_grad()
