"""A step that was refused leaves an optimizer that goes on as if it had not been tried."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from regkernels import backends, optim

pytestmark = pytest.mark.interpreted


@pytest.mark.parametrize("backend", backends.usable())
def test_gradients_that_moved_before_a_step_was_refused_are_the_ones_that_are_read(backend: str) -> None:
    """The next step must not read them where they were."""
    first, second = nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(3))
    optimizer = optim.SGD([first, second], lr=1.0)
    first.grad, second.grad = torch.ones(5), torch.ones(3)
    old = first.grad
    with backends.use(backend):
        optimizer.step()
        first.grad = torch.full((5,), 100.0)
        optimizer.param_groups[0]["params"].append(nn.Parameter(torch.zeros(2, device="meta")))
        with pytest.raises(ValueError, match="several devices"):
            optimizer.step()
        optimizer.param_groups[0]["params"].pop()
        optimizer.step()
    assert torch.equal(first, torch.full((5,), -101.0)) and torch.equal(second, torch.full((3,), -2.0))
    assert torch.equal(old, torch.ones(5))
