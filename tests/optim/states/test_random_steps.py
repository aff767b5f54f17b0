"""Random numbers of rounding go on with every step, however many there were, whatever type the count was saved in."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn

from regkernels import backends, optim

pytestmark = pytest.mark.usefixtures("one_thread")

LAST = 2**24
"""The count at which a float32 stands still."""


def packed_at(step: Any, state: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
    return {"state": {0: {"step": step, **state}}, "param_groups": [{**group, "params": [0]}]}


@pytest.mark.parametrize(
    "step", [LAST - 1, torch.tensor(float(LAST)), torch.tensor(2.0**32 - 200, dtype=torch.float64)]
)
def test_rounding_stays_unbiased_after_two_to_the_24_steps(step: Any) -> None:
    """400 updates of -0.001 from 1 in bfloat16: 0.600 on average, with the spread of 400 independent roundings, 0.03. With the
    same bits in every step each element goes up, or down, for good: 0.768 and 0.394 were seen."""
    param = nn.Parameter(torch.ones(20_000, dtype=torch.bfloat16))
    optimizer = optim.SGD([param], lr=1.0, param_rounding="stochastic")
    optimizer.load_state_dict(packed_at(step, {}, {"lr": 1.0}))
    param.grad = torch.full_like(param, 0.001)
    grad = float(param.grad[0].double())
    for _ in range(400):
        optimizer.step()
    weights = param.detach().double()
    assert abs(weights.mean() - (1 - 400 * grad)) < 0.002
    assert 0.02 < weights.std() < 0.04
    assert float(optimizer.state[param]["step"]) == float(step) + 400


def test_states_in_bfloat16_go_on_as_well() -> None:
    """beta2 is 0.5 and the gradient is constant: the moment wanders around its value instead of standing still."""
    param = nn.Parameter(torch.zeros(4096))
    optimizer = optim.Adam([param], lr=0.0, betas=(0.5, 0.99), state_dtype=torch.bfloat16)
    moments = {name: torch.full((4096,), 0.7) for name in ("exp_avg", "exp_avg_sq")}
    optimizer.load_state_dict(packed_at(torch.tensor(float(LAST)), moments, {}))
    param.grad = torch.full((4096,), 0.7)
    seen = []
    for _ in range(40):
        optimizer.step()
        seen.append(optimizer.state[param]["exp_avg"].double())
    assert abs(torch.stack(seen).mean() - 0.7) < 1e-4
    assert (torch.stack(seen).std(0) > 0).double().mean() > 0.95


def test_a_count_that_random_numbers_depend_on_is_exact_in_files_and_out_of_them() -> None:
    """Through ``torch.load(weights_only=True)`` into the same optimizer: bit for bit what goes on without a file."""
    weights = []
    for by_file in (False, True):
        param = nn.Parameter(torch.ones(500, dtype=torch.bfloat16))
        optimizer = optim.AdamW([param], param_rounding="stochastic", state_dtype=torch.bfloat16)
        param.grad = torch.full_like(param, 0.25)
        optimizer.step()
        optimizer.state[param]["step"] = torch.tensor(float(LAST) + 1, dtype=torch.float64)
        optimizer.step()
        if by_file:
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            optimizer = optim.AdamW([param], param_rounding="stochastic", state_dtype=torch.bfloat16)
            optimizer.load_state_dict(torch.load(file, weights_only=True))
        for _ in range(3):
            optimizer.step()
        assert optimizer.state[param]["step"] == LAST + 5
        weights.append(param.detach().clone())
    assert torch.equal(*weights)


@pytest.mark.parametrize("options", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
def test_torchs_optimizer_takes_the_count(options: dict[str, bool]) -> None:
    param = nn.Parameter(torch.ones(50, dtype=torch.bfloat16))
    optimizer = optim.AdamW([param], param_rounding="stochastic")
    param.grad = torch.full_like(param, 0.25)
    for _ in range(3):
        optimizer.step()
    visitor = torch.optim.AdamW([param], **options)
    visitor.load_state_dict(optimizer.state_dict())
    visitor.step()
    assert float(visitor.state[param]["step"]) == 4
    back = optim.AdamW([param], param_rounding="stochastic")
    back.load_state_dict(visitor.state_dict())
    back.step()
    assert float(back.state[param]["step"]) == 5


def test_counts_of_all_others_have_torchs_type() -> None:
    params = [nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5, dtype=torch.bfloat16))]
    optimizer = optim.Adam(params, param_rounding="stochastic")
    for param in params:
        param.grad = torch.ones_like(param)
    for _ in range(3):
        optimizer.step()
    assert [optimizer.state[param]["step"].dtype for param in params] == [torch.float32, torch.float64]
    assert [float(optimizer.state[param]["step"]) for param in params] == [3, 3]


@pytest.mark.interpreted
@pytest.mark.parametrize("backend", backends.usable())
def test_steps_beyond_a_word_of_32_bits(backend: str) -> None:
    """The same on all backends: the number of the step is taken modulo 2**32."""
    ways = []
    for step, own in ((5.0, backend), (2.0**32 + 5, backend), (5.0, "reference")):
        param = nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
        optimizer = optim.SGD([param], lr=1.0, param_rounding="stochastic")
        optimizer.state[param]["step"] = torch.tensor(step, dtype=torch.float64)
        param.grad = torch.full_like(param, 0.001)
        with backends.use(own):
            optimizer.step()
        ways.append(param.detach().clone())
    assert torch.equal(ways[0], ways[1]) and torch.equal(ways[0], ways[2])
