"""A step called in a compiled function that is told to call it: what generated code does with tensors changed in place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regkernels import l1_penalty, optim
from regkernels.prox import soft_threshold, soft_threshold_
from tests.support import engine

pytestmark = pytest.mark.usefixtures("fresh_compiler")

# Loading inductor for the first time warns about torch's own modules.
in_generated_code = pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")


def mutations(x: Tensor, g: Tensor) -> list[Tensor]:
    """A tensor that an operator changes, next to its clones."""
    before = x.clone()
    soft_threshold_(x, 0.3)
    of_clone = soft_threshold(before, 0.1)
    other = before.clone()
    soft_threshold_(other, 0.2)
    again = other.clone()
    soft_threshold_(other, 0.2)
    return [x + before * g, of_clone, other - again, l1_penalty([x, before, other, again], 0.5), before]


MODES: list[dict[str, Any]] = [{"backend": "aot_eager"}, {}, {"mode": "reduce-overhead"}]


@pytest.mark.interpreted
@in_generated_code
@pytest.mark.parametrize("options", MODES, ids=["aot_eager", "inductor", "reduce-overhead"])
def test_clones_of_what_is_changed_in_place(options: dict[str, Any]) -> None:
    ours, g = torch.randn(6, 5), torch.randn(6, 5)
    theirs = ours.clone()
    expected = mutations(theirs, g)
    actual = torch.compile(mutations, fullgraph=True, **options)(ours, g)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(ours, theirs) and torch.equal(actual[-1], expected[-1])
    assert not torch.equal(actual[-1], ours)


@in_generated_code
@pytest.mark.parametrize("options", MODES[1:], ids=["inductor", "reduce-overhead"])
def test_a_step_in_generated_code(options: dict[str, Any]) -> None:
    """Numbers with few digits, whose sums and products are exact in whatever order they are formed."""

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
        optimizer.zero_grad()
        before = model.weight.detach().clone()
        loss = (model(x) * 0.25).square().sum() + l1_penalty(model, 0.125)
        loss.backward()
        optimizer.step()
        return torch.cat([(model.weight - before).flatten(), loss.reshape(1)]).detach()

    results = []
    for function in (step, torch.compile(step, **options)):
        model = nn.Linear(4, 2).double()
        with torch.no_grad():
            model.weight.copy_(torch.arange(8.0).view(2, 4) / 4 - 1)
            model.bias.fill_(0.5)
        optimizer = optim.SGD(model.parameters(), lr=0.125, momentum=0.5, l1=0.25, stats=True)
        outputs = [function(model, optimizer, torch.arange(12.0).double().view(3, 4) / 8 - n / 4) for n in range(3)]
        results.append((outputs, engine.snapshot(optimizer)))
    assert all(map(torch.equal, results[1][0], results[0][0]))
    engine.assert_same(results[1][1], results[0][1])
