"""Clipping, gradients that are not finite, and what an optimizer says of its steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from regkernels import optim
from tests.support.training import (
    assert_equal,
    assert_near,
    backward,
    each_optimizer,
    network,
    ours,
    theirs,
    train,
    twins,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("limit", [0.0, 1e-3, 0.1, 1e6])
@each_optimizer
def test_clipping_is_that_of_torch(name: str, limit: float) -> None:
    """As clip_grad_norm_ before the step, over all groups, without a change of the gradients."""
    model, other = twins(network(torch.float32))
    a = ours(name, [{"params": [p]} for p in model.parameters()], max_grad_norm=limit)
    b = ours(name, other.parameters())
    for step in range(10):
        backward(model, step)
        backward(other, step)
        unclipped = [param.grad.clone() for param in model.parameters()]
        torch.nn.utils.clip_grad_norm_(other.parameters(), limit)
        a.step()
        b.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), unclipped, strict=True))
        b.zero_grad()
        a.zero_grad()
        assert_near(model, other, 1e-6 * (step + 1))
        if limit == 1e6:
            assert_equal(model, other)


@pytest.mark.parametrize("limit", [1e-8, 1e-7, 1e-6, 1e-5])
def test_clipping_of_tiny_gradients(limit: float) -> None:
    """torch adds 1e-6 to the norm, which counts where the norm is as small."""
    p, q = nn.Parameter(torch.zeros(3, dtype=torch.float64)), nn.Parameter(torch.zeros(3, dtype=torch.float64))
    for param in (p, q):
        param.grad = torch.tensor([1e-7, -2e-7, 3e-7], dtype=torch.float64)
    torch.nn.utils.clip_grad_norm_([q], limit)
    optim.SGD([p], lr=1.0, max_grad_norm=limit).step()
    torch.optim.SGD([q], lr=1.0).step()
    torch.testing.assert_close(p, q, rtol=1e-12, atol=0)


def _finite_or_nan(tensor: Tensor) -> Tensor:
    return torch.where(tensor.isfinite(), tensor, torch.nan)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("limit", [None, 1.0])
@each_optimizer
def test_bad_gradients_spread_as_in_torch(name: str, bad: float, limit: float | None) -> None:
    """Without clipping into their element only; with it everywhere that torch's factor takes them."""
    model, other = twins(network())
    a, b = ours(name, model.parameters(), max_grad_norm=limit, stats=True), theirs(name, other.parameters())
    for step in range(3):
        a.zero_grad()
        b.zero_grad()
        for net in (model, other):
            backward(net, step)
            if step == 1:
                net[0].weight.grad[2, 3] = bad
        if limit is not None:
            torch.nn.utils.clip_grad_norm_(other.parameters(), limit)
        a.step()
        b.step()
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            mine, wanted = (_finite_or_nan(p), _finite_or_nan(q)) if name == "radam" else (p, q)
            torch.testing.assert_close(mine, wanted, rtol=1e-12, atol=1e-12, equal_nan=True)
            torch.testing.assert_close(dict(a.state[p]), dict(b.state[q]), rtol=1e-12, atol=1e-12, equal_nan=True)
        if step == 1:
            assert a.stats.grad_norm.isnan() if bad != bad else a.stats.grad_norm == torch.inf
            if name == "radam":  # its weight is NaN now where torch's is infinite, see there
                break


@each_optimizer
def test_stats(name: str) -> None:
    """Per group, of the updated weights that took part; the gradient's norm is over all groups and unclipped."""
    model = network(torch.bfloat16)
    model[2].double()
    groups = [model[0].weight], [model[0].bias], list(model[2].parameters())
    options = {"l1": 0.5, "l1_mode": "decoupled", "lr": 0.3}
    optimizer = ours(name, [{"params": group} for group in groups], **options, stats=True, max_grad_norm=5.0)
    assert optimizer.stats is None
    for step in range(3):
        for param in model.parameters():
            param.grad = torch.randn_like(param)
        model[0].bias.grad = None
        gradients = [param.grad.double().flatten() for param in model.parameters() if param.grad is not None]
        optimizer.step()
        stats = optimizer.stats
        assert stats._fields == ("l1_norm", "squared_norm", "nonzeros", "grad_norm", "zero_groups")
        assert [value.dtype for value in stats] == [
            torch.float64,
            torch.float64,
            torch.int64,
            torch.float64,
            torch.int64,
        ]
        assert [tuple(value.shape) for value in stats] == [(3,), (3,), (3,), (), (3,)]
        updated = [torch.cat([p.detach().double().flatten() for p in group]) for group in groups]
        updated[1] = torch.zeros(1, dtype=torch.float64)  # it had no gradient
        zero_groups = torch.zeros(3, dtype=torch.int64)
        want = [[w.abs().sum() for w in updated], [(w * w).sum() for w in updated], [(w != 0).sum() for w in updated]]
        for value, expected in zip(
            stats, [*map(torch.stack, want), torch.cat(gradients).norm(), zero_groups], strict=True
        ):
            torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
        assert 0 < stats.nonzeros[0] < 35 or step == 0, "some weights are zero, some are not"


def test_stats_of_a_step_without_gradients_are_not_those_of_the_step_before() -> None:
    model = network()
    optimizer = ours("adam", model.parameters(), stats=True)
    train(optimizer, model, range(2))
    optimizer.zero_grad()
    optimizer.step()
    assert optimizer.stats is None or all((value == 0).all() for value in optimizer.stats)


def test_no_stats_unless_asked_for() -> None:
    model = network()
    optimizer = ours("adam", model.parameters())
    train(optimizer, model, range(2))
    with pytest.raises(AttributeError, match="stats: Adam was not asked for sums; make it with stats=True"):
        optimizer.stats  # noqa: B018
    assert not hasattr(optimizer, "stats") and getattr(optimizer, "stats", 1) == 1
    assert optim.Adam(model.parameters(), stats=True).stats is None, "before the first step"
