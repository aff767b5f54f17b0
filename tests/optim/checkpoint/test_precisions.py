"""A run may go on in another precision than it was saved in; what is missing begins exactly, what is not needed is kept."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regkernels import optim, reference
from tests.optim.checkpoint.cases import assert_identical, snapshot, through_a_file

ROUNDINGS = ["nearest", "stochastic", "remainder", "master"]
STEPS = 6


def _gradients(step: int) -> Tensor:
    return torch.sin(torch.arange(40.0) * (step + 1)).to(torch.bfloat16)


def _trained(param: nn.Parameter, states: Any, steps: range, kind: str = "AdamW", **options: Any) -> Any:
    optimizer = getattr(optim, kind)([param], lr=1e-3, l1=1e-2, **options)
    if states is not None:
        optimizer.load_state_dict(states)
    for step in steps:
        param.grad = _gradients(step).to(param.dtype)
        optimizer.step()
    return optimizer


def _saved(rounding: str) -> tuple[Tensor, Any]:
    param = nn.Parameter(torch.linspace(-2, 2, 40).to(torch.bfloat16))
    optimizer = _trained(param, None, range(STEPS), param_rounding=rounding)
    return param.detach().clone(), through_a_file(optimizer.state_dict())


def _float32(weight: Tensor, state: dict[str, Tensor], rounding: str) -> Tensor:
    """The weight that a float32 run would have."""
    if rounding == "remainder":
        return reference.rounding.join(weight, state["remainder"])
    return state["master"] if rounding == "master" else weight.float()


@pytest.mark.parametrize("after", ["remainder", "master"])
@pytest.mark.parametrize("before", ROUNDINGS)
def test_a_float32_run_is_continued_exactly(before: str, after: str) -> None:
    """Against one with float32 weights, from the weights that the checkpoint has, to the last bit where both keep all."""
    weight, states = _saved(before)
    kept = before if before == after else "nearest"  # another rounding does not know what this one has kept
    wide = nn.Parameter(_float32(weight, states["state"][0], kept).clone())
    plain = snapshot(states)
    for name in ("remainder", "master"):
        plain["state"][0].pop(name, None)
    _trained(wide, plain, range(STEPS, 2 * STEPS))
    param = nn.Parameter(weight.clone())
    optimizer = _trained(param, states, range(STEPS, 2 * STEPS), param_rounding=after)
    assert torch.equal(_float32(param.detach(), optimizer.state[param], after), wide)


@pytest.mark.parametrize(("before", "after"), list(itertools.product(ROUNDINGS, ("nearest", "stochastic"))))
def test_what_is_not_needed_does_no_harm(before: str, after: str) -> None:
    weight, states = _saved(before)
    results = []
    for packed in (states, snapshot(states)):
        if packed is not states:
            for name in ("remainder", "master"):
                packed["state"][0].pop(name, None)
        param = nn.Parameter(weight.clone())
        optimizer = _trained(param, packed, range(STEPS, 2 * STEPS), param_rounding=after, seed=4)
        results.append([param.detach().clone(), *(optimizer.state[param][name] for name in ("exp_avg", "exp_avg_sq"))])
    assert_identical(snapshot(results[0]), snapshot(results[1]))


def test_states_in_fewer_bits_and_back() -> None:
    """Rounded to nearest when they are loaded; the other way is exact."""
    weight, states = _saved("nearest")
    narrow = _trained(nn.Parameter(weight.clone()), states, range(0), state_dtype=torch.bfloat16)
    loaded = narrow.state_dict()["state"][0]
    for name in ("exp_avg", "exp_avg_sq"):
        assert_identical(loaded[name], states["state"][0][name].to(torch.bfloat16))
    wide = _trained(nn.Parameter(weight.clone()), narrow.state_dict(), range(0)).state_dict()["state"][0]
    for name in ("exp_avg", "exp_avg_sq"):
        assert_identical(wide[name], loaded[name].float())


def test_a_remainder_that_torch_has_converted_is_refused() -> None:
    """torch makes a bfloat16 number of it."""
    weight, states = _saved("remainder")
    param = nn.Parameter(weight)
    visitor = torch.optim.AdamW([param])
    visitor.load_state_dict(states)
    param.grad = _gradients(0)
    visitor.step()
    back = visitor.state_dict()
    optimizer = optim.AdamW([param], param_rounding="remainder")
    with pytest.raises(TypeError, match=r"'remainder' of parameter 0.*dtype torch.bfloat16.*torch.int16; delete it"):
        optimizer.load_state_dict(back)
    del back["state"][0]["remainder"]
    optimizer.load_state_dict(back)
    optimizer.step()
    assert optimizer.state[param]["remainder"].dtype == torch.int16 and optimizer.state[param]["step"] == STEPS + 2
