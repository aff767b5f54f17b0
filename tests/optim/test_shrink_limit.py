"""The bound on a proximal step: what it takes at most, what it leaves alone, and that training ends where it did without it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import regkernels as rk
from regkernels import optim
from tests.optim.test_fixed_points import L1, LINEAR, RULES, SOLUTIONS, WEIGHT_DECAY, assert_solves
from tests.optim.test_group_fixed_points import OBJECTIVES, violation
from tests.support import problems

LIMITS = (1.5, 2.0, 4.0, None)
BOUNDED = ("adam", "amsgrad", "adamw", "radam", "rmsprop", "rmsprop_momentum", "adagrad")
"""Rules by whose moves the bound is measured."""

UNSEEN = 3


def with_unseen_columns() -> problems.Problem:
    """The linear problem, with columns of zeros behind: their weights never have a gradient."""
    zeros = torch.zeros(len(LINEAR.features), UNSEEN, dtype=torch.float64)
    return LINEAR._replace(features=torch.cat([LINEAR.features, zeros], 1))


def step_of(rule: str) -> float:
    return RULES[rule].gain * RULES[rule].options["lr"]


# --- fixed points ---


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("rule", [*BOUNDED, "rmsprop_centered", "momentum"])
def test_the_elastic_net_is_solved_also_where_there_is_never_a_gradient(rule: str, limit: float | None) -> None:
    options: dict[str, Any] = {"l1": L1, "weight_decay": WEIGHT_DECAY, "weight_decay_mode": "prox"}
    problem = with_unseen_columns()
    w = problems.minimise(problem, lambda params: RULES[rule](params, **options, shrink_limit=limit))
    assert_solves(w, torch.cat([SOLUTIONS["elastic net"], torch.zeros(UNSEEN, dtype=torch.float64)]))


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("rule", ["adam", "adagrad"])
@pytest.mark.parametrize("name", ["sparse group lasso", "with decay"])
def test_groups_are_solved_also_where_there_is_never_a_gradient(name: str, rule: str, limit: float | None) -> None:
    options, problem = OBJECTIVES[name], with_unseen_columns()
    own = {**options, "group_size": 3, "shrink_limit": limit}
    w = problems.minimise(problem, lambda params: RULES[rule](params, **own))
    assert violation(w[:-UNSEEN], **options) < 1e-9
    assert not w[-UNSEEN:].any()


# --- what is taken ---

PENALTIES: dict[str, dict[str, Any]] = {
    "l1": {"l1": 0.3},
    "weighted l1": {"l1": 0.3, "l1_weights": [torch.linspace(0, 2, 400, dtype=torch.float64)]},
    "decay": {"weight_decay": 0.9, "weight_decay_mode": "prox"},
    "both": {"l1": 0.3, "weight_decay": 0.9, "weight_decay_mode": "prox"},
    **{key: {key: 0.3} for key in rk.reference.OPERATORS},
    "mcp with decay": {"mcp": 0.3, "weight_decay": 0.9, "weight_decay_mode": "prox"},
    "positive": {"l1": 0.3, "positive": True},
    "box": {"l1": 0.3, "box": (-0.5, 0.25)},
}


def stepped(rule: str, weight: Tensor, gradients: Tensor, limit: float | None, **options: Any) -> Tensor:
    param = nn.Parameter(weight.clone())
    optimizer = RULES[rule]([param], shrink_limit=limit, **options)
    for gradient in gradients[:-1]:
        param.grad = gradient
        optimizer.step()
    with torch.no_grad():
        param.copy_(weight)
    param.grad = gradients[-1]
    optimizer.step()
    return param.detach()


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("rule", ["adam", "rmsprop_momentum", "radam"])
def test_a_step_takes_no_more_than_the_limit_and_has_its_own_bits_below(rule: str, penalty: str) -> None:
    options = PENALTIES[penalty]
    weight = torch.randn(400, dtype=torch.float64)
    gradients = torch.randn(8, 400, dtype=torch.float64) * torch.logspace(-9, 1, 400, dtype=torch.float64)
    moved = stepped(rule, weight, gradients, None)
    free, bound = (stepped(rule, weight, gradients, limit, **options) for limit in (None, 2.0))
    most = 2.0 * step_of(rule)
    low, high = options.get("box", (0.0 if options.get("positive") else -math.inf, math.inf))
    if low > -math.inf:  # what a penalty leaves before the constraint
        free = stepped(rule, weight, gradients, None, l1=options["l1"])
    exceeds = (moved - free).abs() > most
    assert 0 < int(exceeds.sum()) < 400
    torch.testing.assert_close(
        bound, torch.where(exceeds, moved - most * (moved - free).sign(), free).clamp(low, high), rtol=1e-12, atol=1e-15
    )
    assert torch.equal(bound[~exceeds], free[~exceeds].clamp(low, high))


@pytest.mark.parametrize("options", [{"group_l1": 0.3}, {"group_l1": 0.2, "l1": 0.2, "weight_decay": 0.4}], ids=str)
def test_the_norm_of_a_group_loses_no_more_than_the_limit_times_the_root_of_its_size(options: dict[str, Any]) -> None:
    weight = torch.randn(40, 10, dtype=torch.float64)
    gradients = torch.randn(3, 40, 10, dtype=torch.float64) * torch.logspace(-9, 1, 40, dtype=torch.float64)[:, None]
    moved = stepped("adam", weight, gradients, None, max_norm=1e9)  # by groups, too, with nothing taken
    free, bound = (
        stepped("adam", weight, gradients, limit, weight_decay_mode="prox", **options) for limit in (None, 2.0)
    )
    most = 2.0 * step_of("adam") * math.sqrt(10)
    lost = (moved - bound).norm(dim=1)
    assert (lost <= most * (1 + 1e-9)).all() and (moved.norm(dim=1) - bound.norm(dim=1) <= most * (1 + 1e-9)).all()
    exceeds = (moved - free).norm(dim=1) > most
    assert 0 < int(exceeds.sum()) < 40
    torch.testing.assert_close(lost[exceeds], torch.full_like(lost[exceeds], most), rtol=1e-9, atol=0)
    torch.testing.assert_close(bound[~exceeds], free[~exceeds], rtol=1e-12, atol=1e-15)


def test_norms_of_groups_are_kept_whatever_the_limit() -> None:
    weight, gradients = 5 * torch.randn(30, 8, dtype=torch.float64), torch.zeros(1, 30, 8, dtype=torch.float64)
    most = {"max_norm": 1.0, "l1": 0.3, "group_l1": 0.3}
    assert stepped("adam", weight, gradients, 2.0, **most).norm(dim=1).allclose(torch.ones(30, dtype=torch.float64))
    unit = stepped("adam", weight, gradients, 2.0, unit_norm=True, l1=0.3)
    assert unit.norm(dim=1).allclose(torch.ones(30, dtype=torch.float64))
    assert unit.count_nonzero() > 200  # and the soft-threshold has erased next to nothing


# --- models ---


def test_rows_of_an_embedding_that_no_token_has_reached_stay() -> None:
    """As in a language model with more rows than tokens in a batch: without a limit nearly all of them are erased at once."""
    rows, lr = 8000, 1e-3
    tokens = torch.arange(64).view(4, 16)

    def trained(limit: float | None, steps: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(rows, 16), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 64))
        start = model[0].weight.detach().clone()
        optimizer = optim.AdamW(model.parameters(), lr=lr, l1=1e-4, weight_decay=0.0, shrink_limit=limit)
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
            optimizer.step()
        return start, model[0].weight.detach()

    assert int((trained(None, 1)[1] == 0).all(1).sum()) > 7900
    for steps in (1, 5):
        start, now = trained(2.0, steps)
        assert not (now == 0).all(1).any()
        assert ((start - now)[64:].abs() <= 2 * lr * steps + 1e-6).all()


def test_a_network_keeps_its_weights_in_the_first_step_and_ends_with_the_same_zeros() -> None:
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16.0, dtype=torch.float32), torch.tensor(labels)

    def trained(limit: float | None) -> tuple[float, float, float]:
        """Shares: of zeros after a step and in the end, and of test images that are recognised."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
        optimizer = optim.Adam(rk.param_groups(model, l1=3e-4), lr=1e-3, shrink_limit=limit)
        weights = [layer.weight for layer in (model[0], model[2])]
        shares = []
        for step in range(1500):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[:1200]), y[:1200]).backward()
            optimizer.step()
            if step in (0, 1499):
                zeros = sum(int((w == 0).sum()) for w in weights)
                shares.append(zeros / sum(w.numel() for w in weights))
        right = (model(x[1200:]).argmax(1) == y[1200:]).float().mean().item()
        return shares[0], shares[1], right

    first, zeros, right = trained(2.0)
    first_without, zeros_without, right_without = trained(None)
    assert first < 0.01 < 0.1 < first_without
    assert abs(zeros - zeros_without) < 0.01 and zeros > 0.5
    assert abs(right - right_without) < 0.01 and right > 0.9


# --- what is refused ---

REFUSED: list[tuple[Any, type[Exception], str]] = [
    (1.0, ValueError, "shrink_limit must be greater than 1, got 1.*comes to rest where it should be 0"),
    (1, ValueError, "shrink_limit must be greater than 1, got 1"),
    (0.5, ValueError, "shrink_limit must be greater than 1, got 0.5"),
    (-2.0, ValueError, "shrink_limit must be greater than 1, got -2"),
    (math.nan, ValueError, "shrink_limit must be finite, got nan.*None is no limit"),
    (math.inf, ValueError, "shrink_limit must be finite, got inf.*None is no limit"),
    (10**400, ValueError, "shrink_limit must be finite, got inf"),
    ("2", TypeError, "shrink_limit must be a number, got '2'"),
    (True, TypeError, "shrink_limit must be a number greater than 1, or None, got True"),
    (torch.tensor(2.0), TypeError, "shrink_limit must be a number greater than 1, or None, got tensor"),
]


@pytest.mark.parametrize(("value", "error", "text"), REFUSED, ids=str)
def test_limits_that_are_none_are_refused_before_anything_changes(
    value: Any, error: type[Exception], text: str
) -> None:
    param = nn.Parameter(torch.ones(3))
    for name in ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "RAdam", "Lion"):
        with pytest.raises(error, match=text):
            getattr(optim, name)([param], shrink_limit=value)
    with pytest.raises(error, match=r"shrink_limit.*param group 0"):
        optim.Adam([{"params": [param], "shrink_limit": value}])
    optimizer = optim.Adam([param], l1=0.1)
    optimizer.param_groups[0]["shrink_limit"] = value
    param.grad = torch.ones(3)
    with pytest.raises(error, match="param group 0"):
        optimizer.step()
    assert torch.equal(param, torch.ones(3)) and not optimizer.state
    theirs = torch.optim.Adam([param])
    with pytest.raises(error, match=text):
        rk.attach_prox(theirs, l1=0.1, shrink_limit=value)
    assert "l1" not in theirs.param_groups[0]
    with rk.attach_prox(theirs, l1=0.1):
        theirs.param_groups[0]["shrink_limit"] = value
        with pytest.raises(error, match="param group 0"):
            theirs.step()
        assert torch.equal(param, torch.ones(3))


def test_it_is_a_key_of_param_groups_that_checkpoints_keep() -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer = optim.Adam([param], shrink_limit=3.0)
    assert optimizer.param_groups[0]["shrink_limit"] == 3.0 and optim.Adam([param]).defaults["shrink_limit"] == 2.0
    other = optim.Adam([param], shrink_limit=None)
    without = other.state_dict()
    del without["param_groups"][0]["shrink_limit"]  # as torch saves it
    other.load_state_dict(without)
    assert other.param_groups[0]["shrink_limit"] is None
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["shrink_limit"] == 3.0
    theirs = torch.optim.Adam([param])
    handle = rk.attach_prox(theirs, l1=0.1)
    assert theirs.param_groups[0]["shrink_limit"] == 2.0
    handle.remove()
    assert "shrink_limit" not in theirs.param_groups[0]
