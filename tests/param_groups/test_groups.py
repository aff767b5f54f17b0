"""Param groups: `regkernels.param_groups`, and what an optimizer does with the groups it is given."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import regkernels
from regkernels import optim
from tests.support.training import OPTIMIZERS, assert_near, each_optimizer, network, ours, theirs, train, twins, weights

pytestmark = pytest.mark.usefixtures("one_thread")


class Model(nn.Module):
    """One of everything: embedding tied to the head, convolution, normalisation, a scalar, a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 6)
        self.conv = nn.Conv1d(6, 6, 3)
        self.norm = nn.LayerNorm(6)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.head = nn.Linear(6, 10)
        self.head.weight = self.embed.weight


def names(model: nn.Module, group: dict[str, Any]) -> list[str]:
    name_of = {id(param): name for name, param in model.named_parameters()}
    return [name_of[id(param)] for param in group["params"]]


def test_matrices_are_regularised_embeddings_and_vectors_are_not() -> None:
    model = Model()
    decay, rest = regkernels.param_groups(model, weight_decay=0.1, l1=0.01, lr=0.5, betas=(0.8, 0.9))
    assert names(model, decay) == ["conv.weight"]
    assert names(model, rest) == ["scale", "embed.weight", "conv.bias", "norm.weight", "norm.bias", "head.bias"]
    assert {k: v for k, v in decay.items() if k != "params"} == {
        "name": "penalised",
        "weight_decay": 0.1,
        "l1": 0.01,
        "lr": 0.5,
        "betas": (0.8, 0.9),
    }
    assert {k: v for k, v in rest.items() if k != "params"} == {
        "name": "not penalised",
        "weight_decay": 0.0,
        "l1": 0.0,
        "lr": 0.5,
        "betas": (0.8, 0.9),
    }
    assert rest["params"][1] is model.embed.weight is model.head.weight


def test_regularise_chooses_by_name_and_tensor() -> None:
    model = Model()
    asked = []

    def regularise(name: str, param: nn.Parameter) -> bool:
        asked.append((name, param))
        return "bias" in name

    chosen, rest = regkernels.param_groups(model, l1=1.0, regularise=regularise)
    assert asked == [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    assert names(model, chosen) == ["conv.bias", "norm.bias", "head.bias"]
    assert len(chosen["params"]) + len(rest["params"]) == 7


def test_regularise_may_answer_with_any_truth_value() -> None:
    chosen, rest = regkernels.param_groups(nn.Linear(2, 2), regularise=lambda name, param: param.dim() - 1)
    assert [param.dim() for param in chosen["params"]] == [2] and [param.dim() for param in rest["params"]] == [1]


@pytest.mark.parametrize("regularise", [lambda name, param: True, lambda name, param: False])
@each_optimizer
def test_an_empty_group_is_no_obstacle(name: str, regularise: Any) -> None:
    model = network()
    optimizer = ours(name, regkernels.param_groups(model, l1=0.1, regularise=regularise), stats=True)
    train(optimizer, model, range(2))
    assert sorted(optimizer.stats.nonzeros.tolist())[0] == 0 and optimizer.stats.l1_norm.shape == (2,)


@each_optimizer
def test_biases_do_not_shrink(name: str) -> None:
    model = network()
    optimizer = ours(name, regkernels.param_groups(model, l1=10.0, weight_decay=0.1, shrink_limit=None))
    before = weights(model)
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    for _ in range(3):
        optimizer.step()
    for param, old in zip(model.parameters(), before, strict=True):
        assert (param == 0).all() if param.dim() == 2 else torch.equal(param, old)


def test_torchs_optimizers_take_the_groups() -> None:
    model, other = twins(network())
    a = optim.AdamW(regkernels.param_groups(model, weight_decay=0.5, lr=0.1))
    b = torch.optim.AdamW(regkernels.param_groups(other, weight_decay=0.5, lr=0.1))
    train(a, model, range(4))
    train(b, other, range(4))
    assert_near(model, other)


def test_the_defaults_are_torchs() -> None:
    for kind in ("SGD", "Adam", "AdamW"):
        parameters = [nn.Parameter(torch.zeros(2))]
        mine, other = getattr(optim, kind)(parameters), getattr(torch.optim, kind)(parameters)
        group = mine.param_groups[0]
        assert {key: group.get(key) for key in other.param_groups[0]} == other.param_groups[0]
        assert mine.defaults.keys() - other.defaults.keys() == {"l1", "l1_mode", "weight_decay_mode", "shrink_limit"}
        decoupled = "decoupled" if kind == "AdamW" else "coupled"
        assert (group["l1"], group["l1_mode"], group["weight_decay_mode"]) == (0.0, "prox", decoupled)
        assert ("momentum" in mine.defaults) or ("betas" in mine.defaults)  # OneCycleLR looks there


@each_optimizer
def test_lr_may_stand_in_the_groups_only(name: str) -> None:
    model, other = twins(network())
    for kind, net in ((optim, model), (torch.optim, other)):
        groups = [{"params": layer.parameters(), "lr": lr} for layer, lr in ((net[0], 0.1), (net[2], 0.01))]
        train(getattr(kind, OPTIMIZERS[name][0])(groups), net, range(4))
    assert_near(model, other)


@each_optimizer
def test_unknown_keys_are_carried_along(name: str) -> None:
    model = network()
    extra = {"layer": "first", "lr_scale": 0.3, "swap": None, "fused": True, "foreach": True, "list": [1, 2]}
    optimizer = ours(name, [{"params": model[0].parameters(), **extra}])
    optimizer.add_param_group({"params": model[2].parameters(), "layer": "second"})
    train(optimizer, model, range(2))
    loaded = ours(name, [{"params": model[0].parameters()}, {"params": model[2].parameters()}])
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each in (optimizer, loaded):
        assert {key: each.param_groups[0][key] for key in extra} == extra
        assert each.param_groups[1]["layer"] == "second" and "lr_scale" not in each.param_groups[1]


@each_optimizer
def test_named_parameters(name: str) -> None:
    model, other = twins(network())
    optimizer = ours(name, model.named_parameters())
    assert optimizer.param_groups[0]["param_names"] == [n for n, _ in model.named_parameters()]
    train(optimizer, model, range(3))
    train(theirs(name, other.named_parameters()), other, range(3))
    assert_near(model, other)
    packed = optimizer.state_dict()
    assert packed["param_groups"][0]["param_names"] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    unnamed = ours(name, model.parameters())
    unnamed.load_state_dict(packed)
    train(unnamed, model, range(3, 5))
    model[2].bias.grad = torch.ones(3, dtype=torch.float32).double()
    model[2].bias.data = model[2].bias.data.float()
    with pytest.raises(RuntimeError, match=r"gradient of parameter 3 of param group 0 \(2\.bias\) has dtype"):
        optimizer.step()


@each_optimizer
def test_a_single_tensor_and_a_generator_make_groups(name: str) -> None:
    model, other = twins(network())
    for make, net in ((ours, model), (theirs, other)):
        groups = [{"params": net[0].weight}, {"params": (p for p in net[2].parameters())}]
        train(make(name, groups), net, range(3))
    assert_near(model, other)


@each_optimizer
def test_a_tuple_of_parameters(name: str) -> None:
    model, other = twins(network())
    for make, net in ((ours, model), (theirs, other)):
        optimizer = make(name, net.parameters())
        optimizer.param_groups[0]["params"] = tuple(optimizer.param_groups[0]["params"])
        train(optimizer, net, range(4))
    assert_near(model, other)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adagrad"])  # torch's makes its states at once
def test_lazy_modules_may_be_given_before_they_know_their_shape(name: str) -> None:
    results = []
    for make in (ours, theirs):
        torch.manual_seed(0)
        model = nn.LazyLinear(3).double()
        optimizer = make(name, model.parameters())
        train(optimizer, model, range(3))
        results.append(model)
    assert_near(*results)


def test_a_strength_that_all_groups_override_is_warned_of(recwarn: pytest.WarningsRecorder) -> None:
    model = nn.Linear(3, 2)
    optim.AdamW(regkernels.param_groups(model, l1=0.1))  # its own weight_decay of 0.01 was not asked for
    optim.AdamW(regkernels.param_groups(model, l1=0.1), l1=0.3)
    optim.AdamW(model.parameters(), l1=0.3, weight_decay=0.2)
    assert not recwarn.list
    for key in ("l1", "weight_decay"):
        with pytest.warns(UserWarning, match=f"{key}=0.3 has no effect: every param group has {key}=0") as caught:
            optim.AdamW(regkernels.param_groups(model), **{key: 0.3})
        assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(UserWarning, match="l1=0.3 has no effect") as caught:
        regkernels.attach_prox(torch.optim.Adam(regkernels.param_groups(model)), l1=0.3)
    assert [warning.filename for warning in caught] == [__file__]


def test_regularise_is_a_function() -> None:
    with pytest.raises(
        TypeError, match="regularise must be a function of a parameter's name and the parameter, got 'w'"
    ):
        regkernels.param_groups(nn.Linear(3, 2), regularise="w")  # type: ignore[arg-type]
