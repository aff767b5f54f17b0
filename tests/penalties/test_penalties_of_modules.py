"""The penalties for the loss: what may be passed as parameters, memory that appears twice, and a training loop."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.penalties.test_penalties import PENALTIES, Penalty, exact

pytestmark = pytest.mark.interpreted


@pytest.fixture(params=PENALTIES)
def penalty(request: pytest.FixtureRequest) -> Penalty:
    return PENALTIES[request.param]


# --- what may be passed ---


class Net(nn.Module):
    """Tied weights (one Parameter in two places), a frozen layer, an unused parameter, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embedding.weight
        self.unused = nn.Parameter(torch.ones(()))
        self.register_buffer("buffer", torch.ones(3))


def test_module_means_its_trainable_parameters_once(penalty: Penalty) -> None:
    net = Net()
    value = penalty.ours(net)
    trainable = [net.embedding.weight, net.head.bias, net.unused]
    assert math.isclose(value.item(), exact(penalty, trainable), rel_tol=1e-6)
    value.backward()
    assert all(p.grad is not None for p in trainable) and net.frozen.weight.grad is None
    assert torch.equal(penalty.ours(p for p in net.parameters() if p.requires_grad), value)
    assert torch.equal(penalty.ours(trainable), value)


ALIASES: dict[str, Callable[[nn.Parameter], list[Tensor]]] = {
    "same object": lambda w: [w, w],
    "not side by side": lambda w: [w, torch.zeros(2), w],
    "another Parameter": lambda w: [w, nn.Parameter(w.detach())],
    "transposed": lambda w: [w, nn.Parameter(w.detach().t())],
}


@pytest.mark.parametrize("alias", ALIASES)
def test_memory_that_appears_twice_counts_once(penalty: Penalty, alias: str) -> None:
    w = nn.Parameter(torch.randn(4, 3))
    value = penalty.ours(ALIASES[alias](w))
    assert math.isclose(value.item(), exact(penalty, [w]), rel_tol=1e-6)
    value.backward()
    torch.testing.assert_close(w.grad, torch.autograd.grad(penalty.eager(w), w)[0])


def test_equal_tensors_are_not_the_same_memory(penalty: Penalty) -> None:
    equal = [nn.Parameter(x) for x in (torch.ones(2), torch.ones(2), torch.empty(0), torch.empty(0))]
    value = penalty.ours(equal)
    assert math.isclose(value.item(), 4 * (penalty.l1 + penalty.l2), rel_tol=1e-6)
    value.backward()
    assert all(p.grad is not None for p in equal)


def test_halves_of_one_tensor_are_different_memory(penalty: Penalty) -> None:
    w = torch.randn(8, dtype=torch.float64)
    assert math.isclose(penalty.ours([w[:4], w[4:]]).item(), exact(penalty, [w]), rel_tol=1e-13)
    assert math.isclose(penalty.ours([w[::2], w[1::2]]).item(), exact(penalty, [w]), rel_tol=1e-13)


@pytest.mark.parametrize("frozen_first", [True, False])
def test_a_frozen_alias_does_not_take_the_gradient_away(penalty: Penalty, frozen_first: bool) -> None:
    w = torch.randn(6, requires_grad=True)
    penalty.ours([w.detach(), w] if frozen_first else [w, w.detach()]).backward()
    assert w.grad is not None and w.grad.count_nonzero() == 6


def test_training_loop_with_the_penalty_in_the_loss(penalty: Penalty) -> None:
    inputs, targets = torch.randn(32, 4), torch.randn(32, 1)
    weights = []
    for eager in (False, True):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for _ in range(30):
            optimizer.zero_grad()
            regulariser = sum(map(penalty.eager, model.parameters())) if eager else penalty.ours(model)
            (nn.functional.mse_loss(model(inputs), targets) + regulariser).backward()
            optimizer.step()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)
