"""The table that the groups print, and that they are a list like any other."""

from __future__ import annotations

import copy
import io
import json
import pickle

import pytest
import torch
from torch import nn

import regkernels
from regkernels import optim


def network() -> nn.Module:
    blocks = [nn.ModuleDict({"linear": nn.Linear(1200, 2), "norm": nn.LayerNorm(2)}) for _ in range(3)]
    model = nn.ModuleDict({"embed": nn.Embedding(5, 2), "blocks": nn.ModuleList(blocks), "head": nn.Linear(2, 5)})
    model.head.weight = model.embed.weight
    model.scale = nn.Parameter(torch.tensor(1.0))
    return model


TABLE = """\
penalised, l1=0.1, weight_decay=0.01: 3 tensors, 7,200 elements
  blocks.[0-2].linear.weight  2 x 1200  3 x 2,400  weight of Linear
not penalised: 12 tensors, 34 elements
  scale                       ()                1  scale
  embed.weight                5 x 2            10  embedding, tied to head.weight
  blocks.[0-2].linear.bias    2             3 x 2  bias
  blocks.[0-2].norm.weight    2             3 x 2  norm (LayerNorm)
  blocks.[0-2].norm.bias      2             3 x 2  norm (LayerNorm)
  head.bias                   5                 5  bias"""


def test_the_table() -> None:
    groups = regkernels.param_groups(network(), l1=0.1, weight_decay=0.01, mcp=0.0)
    assert str(groups) == repr(groups) == TABLE


def test_a_tied_parameter_names_its_other_places() -> None:
    model = nn.ModuleDict({"head": nn.Linear(2, 5, bias=False), "embed": nn.Embedding(5, 2)})
    model.embed.weight = model.head.weight
    assert str(regkernels.param_groups(model)).endswith("  head.weight  5 x 2  10  embedding, tied to embed.weight")
    both = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
    both[1].weight = both[0].weight
    assert "  0.weight  2 x 2  4  weight of Linear, tied to 1.weight\n" in str(regkernels.param_groups(both))


def test_names_are_joined_only_where_nothing_is_invented() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    lines = str(regkernels.param_groups(model)).splitlines()
    assert [line.split("  ")[1] for line in lines if line.startswith("  ")] == [
        *("[0,2].weight", "3.0.weight", "[0,2].bias", "3.0.bias")
    ]
    diagonal = nn.ModuleDict({f"a{i}": nn.ModuleDict({f"b{i}": nn.PReLU()}) for i in range(3)})
    assert "a[..].b[..].weight" in str(regkernels.param_groups(diagonal))


def test_what_a_function_chooses_says_so() -> None:
    text = str(regkernels.param_groups(nn.Linear(3, 2), positive=True, regularise=lambda name, p: name == "bias"))
    assert text == (
        "penalised, positive=True: 1 tensor, 2 elements\n  bias    2      2  chosen by regularise\n"
        "not penalised: 1 tensor, 6 elements\n  weight  2 x 3  6  left out by regularise"
    )


def test_parametrised_weights_say_what_they_are() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3, bias=False)), nn.LazyLinear(2))
    text = str(regkernels.param_groups(model))
    for name, rest in (
        ("original0", "3 x 1          3  magnitude of weight_norm"),
        ("original1", "3 x 4         12  direction of weight_norm"),
    ):
        assert f"  0.parametrizations.weight.{name}  {rest}\n" in text
    assert "no shape yet   0  weight of LazyLinear" in text


def test_it_is_a_list_for_everybody_else() -> None:
    model = network()
    groups = regkernels.param_groups(model, l1=0.1)
    assert isinstance(groups, list) and len(groups) == 2 and type(groups + groups) is list
    for copied in (copy.copy(groups), copy.deepcopy(groups), pickle.loads(pickle.dumps(groups))):
        assert type(copied) is type(groups) and str(copied) == str(groups)
        assert [group["l1"] for group in copied] == [0.1, 0.0]
    assert [len(group["params"]) for group in copy.deepcopy(groups)] == [3, 12]
    for kind in (optim.AdamW, torch.optim.AdamW):
        assert type(kind(groups).param_groups) is list


def test_the_names_of_the_groups_are_saved_and_loaded() -> None:
    model = network()
    names = [group["name"] for group in regkernels.param_groups(model)]
    assert names == ["penalised", "not penalised"]
    several = [*regkernels.param_groups(model.embed, name="embed"), *regkernels.param_groups(model.blocks, l1=0.1)]
    assert [group["name"] for group in several] == ["embed, penalised", "embed, not penalised", *names]
    optimizer = optim.SGD(regkernels.param_groups(model, l1=0.1), lr=0.1)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert json.dumps(loaded["param_groups"]) == json.dumps(optimizer.state_dict()["param_groups"])
    plain = optim.SGD([{"params": group["params"]} for group in optimizer.param_groups], lr=0.5)
    plain.load_state_dict(loaded)
    assert [group["name"] for group in plain.param_groups] == names
    torchs = torch.optim.SGD([{"params": group["params"]} for group in optimizer.param_groups], lr=0.5)
    optimizer.load_state_dict(torchs.state_dict())  # torch knows no names: this optimizer's stay
    assert [(group["name"], group["lr"]) for group in optimizer.param_groups] == [(name, 0.5) for name in names]


def test_frozen_parameters_are_not_listed() -> None:
    model = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2))
    assert "0." not in str(regkernels.param_groups(model))
    with pytest.raises(ValueError, match="no trainable parameter"):
        regkernels.param_groups(model[0])
