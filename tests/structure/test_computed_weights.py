"""Weights that torch.nn.utils computes from others: what makes them plain is said, and then works."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, remove_spectral_norm, remove_weight_norm, spectral_norm, weight_norm

import regkernels as rk

pytestmark = pytest.mark.usefixtures("one_thread")


def _pruned(layer: nn.Linear) -> None:
    prune.custom_from_mask(layer, "weight", torch.tensor([1.0, 0, 1, 1]).reshape(4, 1).expand(4, 3))
    prune.custom_from_mask(layer, "bias", torch.tensor([1.0, 0, 1, 1]))


def _weight_normed(layer: nn.Linear) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and people have it
        weight_norm(layer)
    layer.weight_g.data[1] = 0


def _spectral_normed(layer: nn.Linear) -> None:
    layer.weight.data[1] = 0
    spectral_norm(layer)


def _plain(layer: nn.Linear) -> None:
    prune.remove(layer, "weight")
    prune.remove(layer, "bias")


WAYS: dict[str, tuple[Callable[[nn.Linear], None], Callable[[nn.Linear], object], str]] = {
    "pruned": (_pruned, _plain, r"pruned; run torch\.nn\.utils\.prune\.remove\(module, 'weight'\) first"),
    "weight_norm": (
        _weight_normed,
        remove_weight_norm,
        r"by weight_norm; run torch\.nn\.utils\.remove_weight_norm\(module, 'weight'\) first",
    ),
    "spectral_norm": (
        _spectral_normed,
        remove_spectral_norm,
        r"by spectral_norm; run torch\.nn\.utils\.remove_spectral_norm\(module, 'weight'\) first",
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("called", [False, True])
def test_compaction_says_what_makes_them_plain(way: str, called: bool) -> None:
    compute, make_plain, message = WAYS[way]
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    compute(model[0])
    x = torch.randn(5, 3)
    before = model(x) if called else None
    with pytest.raises(ValueError, match=rf"weight of 0 \(Linear\) is (computed )?{message}"):
        rk.compact(model)
    make_plain(model[0])
    small = rk.compact(model, x).model
    assert small[0].out_features == 3
    torch.testing.assert_close(small(x), model(x))
    assert before is None or torch.allclose(small(x), before, atol=1e-6)


def test_a_layer_by_itself() -> None:
    with pytest.raises(ValueError, match=r"bias of the model \(Linear\) is pruned; run .*\(module, 'bias'\) first"):
        rk.compact(prune.l1_unstructured(nn.Linear(3, 4), "bias", 2))


def test_parametrizations_are_kept_and_said() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    model[0].weight.data[1] = 0
    parametrizations.spectral_norm(model[0])
    compacted = rk.compact(model)
    assert not compacted.removed and "parametrize.remove_parametrizations makes it plain" in compacted.kept[0].reason
    nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    assert rk.compact(model).model[0].out_features == 3


def test_the_report_shows_masks() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    nn.init.ones_(model[0].weight)
    _pruned(model[0])
    _pruned(model[0])  # masks multiply in a container of methods
    prune.custom_from_mask(model[0], "weight", torch.tensor([1.0, 1, 0]).expand(4, 3))
    report = rk.sparsity_report(model)
    row = report["0.weight_orig"]
    assert row[1:8] == ((4, 3), 12, 6, 4, 1, 3, 1) and row.l1_norm == 6 and report["0.bias_orig"].zeros == 1
    assert report["1.weight"].zeros == 0
    _plain(model[0])
    assert rk.sparsity_report(model)["0.weight"][1:] == row[1:]


def test_the_report_of_tied_weights_that_are_pruned_differently() -> None:
    """An element that one of the modules reads counts."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    prune.custom_from_mask(model[0], "weight", torch.tensor([[0.0, 0], [0, 1]]))
    prune.custom_from_mask(model[1], "weight", torch.tensor([[0.0, 1], [0, 0]]))
    model[1].weight_orig = model[0].weight_orig
    assert rk.sparsity_report(model)["1.weight_orig"].zeros == 2
    model.append(nn.Linear(2, 2, bias=False))
    model[2].weight = model[0].weight_orig
    assert rk.sparsity_report(model)["1.weight_orig"].zeros == 0
