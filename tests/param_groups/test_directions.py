"""Parameters behind a parametrisation that normalises: their length is nothing to the loss, so nothing may shrink it to 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import regkernels
from regkernels import optim

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning"),
]

new, old = nn.utils.parametrizations, nn.utils
DIRECTIONS: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "weight_norm": (new.weight_norm, "0.parametrizations.weight.original1"),
    "spectral_norm": (new.spectral_norm, "0.parametrizations.weight.original"),
    "orthogonal": (new.orthogonal, "0.parametrizations.weight.original"),
    "older weight_norm": (old.weight_norm, "0.weight_v"),
    "older spectral_norm": (old.spectral_norm, "0.weight_orig"),
}
ZEROS: list[dict[str, Any]] = [
    *({key: 0.1} for key in ("l1", "l0", "l_half", "mcp", "scad", "log_sum", "group_l1")),
    {"l1": torch.tensor(0.1)},
    {"l1": 0.1, "l1_mode": "decoupled"},
    {"positive": True},
    {"box": (0.0, 1.0)},
]
HARMLESS: list[dict[str, Any]] = [
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "weight_decay_mode": "prox"},
    {"l1": 0.0, "mcp": 0.0},
    {"huber": 0.1},
    {"unit_norm": True},
    {"box": (-1.0, 1.0)},
]


def network(by: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(DIRECTIONS[by][0](nn.Linear(4, 3)), nn.ReLU(), nn.Linear(3, 1))


@pytest.mark.parametrize("by", DIRECTIONS)
@pytest.mark.parametrize("penalty", ZEROS, ids=str)
def test_what_makes_zeros_is_refused(by: str, penalty: dict[str, Any]) -> None:
    name, key = DIRECTIONS[by][1], next(iter(penalty))
    pattern = f"{key} cannot act on {name}: {by.removeprefix('older ')} normalises it.*Remove the parametrisation"
    for choice in ({}, {"regularise": lambda name, p: True}):
        with pytest.raises(ValueError, match=pattern) as refused:
            regkernels.param_groups(network(by), **choice, **penalty)
    remedy = str(refused.value).partition("regularise=")[2]
    chosen, _ = regkernels.param_groups(network(by), regularise=eval(remedy), **penalty)
    assert [tuple(param.shape) for param in chosen["params"]] == [(1, 3)], "the remedy works"


def test_proximal_decay_is_refused_where_somebody_chooses_the_direction() -> None:
    decay = {"weight_decay": 0.1, "weight_decay_mode": "prox"}
    with pytest.raises(ValueError, match=r"weight_decay cannot act on 0\.weight_v: weight_norm normalises it"):
        regkernels.param_groups(network("older weight_norm"), regularise=lambda name, p: True, **decay)


@pytest.mark.parametrize("by", DIRECTIONS)
@pytest.mark.parametrize("penalty", HARMLESS, ids=str)
def test_what_makes_none_leaves_them_out(by: str, penalty: dict[str, Any]) -> None:
    model = network(by)
    chosen, _ = regkernels.param_groups(model, **penalty)
    assert [id(param) for param in chosen["params"]] == [id(model[2].weight)]


def test_an_embedding_is_left_out_before_that_is_asked() -> None:
    model = nn.Sequential(new.spectral_norm(nn.Embedding(4, 3)), nn.Linear(3, 2))
    chosen, _ = regkernels.param_groups(model, l1=0.1)
    assert len(chosen["params"]) == 1
    with pytest.raises(ValueError, match=r"l1 cannot act on 0\.parametrizations\.weight\.original"):
        regkernels.param_groups(model, l1=0.1, embeddings=True)


@pytest.mark.parametrize(
    ("penalty", "choice"),
    [
        ({"l1": 0.05}, {"regularise": lambda name, p: name == "2.weight"}),
        ({"weight_decay": 0.1, "weight_decay_mode": "prox"}, {}),
    ],
    ids=["l1", "decay"],
)
def test_a_unit_without_gradients_is_no_nan(penalty: dict[str, Any], choice: dict[str, Any]) -> None:
    """All parameters under the penalty end in NaN, the groups do not: the first unit is dead, and only shrinks."""
    ends = []
    for choose in (
        lambda model: model.parameters(),
        lambda model: regkernels.param_groups(model, **choice, **penalty),
    ):
        model = network("weight_norm")
        with torch.no_grad():
            model[0].bias[0] = -100.0
        direction = model[0].parametrizations.weight.original1
        before = direction.detach().clone()
        optimizer = optim.Adam(choose(model), lr=0.1, **penalty)
        for _ in range(30):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
        ends.append(model(torch.ones(2, 4)).isfinite().all().item())
    assert ends == [False, True] and torch.equal(direction[0], before[0])
