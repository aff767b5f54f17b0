"""A model whose layers have the same shapes, and compute with something else, is told from the one that was saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import regkernels as rk

pytestmark = pytest.mark.usefixtures("one_thread")


def layered(**options: Any) -> nn.Module:
    """With one of each kind of layer whose outputs depend on more than its weights."""
    given = {
        "padding": 1,
        "stride": 1,
        "mode": "zeros",
        "eps": 1e-5,
        "slope": 0.1,
        "approximate": "none",
        "kernel": 2,
        "p": 0.5,
    }
    given |= options
    return nn.Sequential(
        nn.Conv1d(1, 4, 3, padding=given["padding"], stride=given["stride"], padding_mode=given["mode"]),
        nn.BatchNorm1d(4, eps=given["eps"], momentum=given.get("momentum", 0.1)),
        nn.LeakyReLU(given["slope"], inplace=given.get("inplace", False)),
        given.get("pool", nn.MaxPool1d)(given["kernel"]),
        nn.GELU(given["approximate"]),
        nn.Dropout(given["p"]),
        nn.Flatten(given.get("start", 1)),
        nn.LazyLinear(2),
    )


OTHER_LAYERS = [
    ({"padding": 0}, r"0\.padding was \(1,\) and is \(0,\) in model"),
    ({"stride": 2}, r"0\.stride was \(1,\) and is \(2,\)"),
    ({"mode": "circular"}, r"0\.padding_mode was 'zeros' and is 'circular'"),
    ({"eps": 1e-3}, r"1\.eps was 1e-05 and is 0\.001"),
    ({"slope": 0.2}, r"2\.negative_slope was 0\.1 and is 0\.2"),
    ({"pool": nn.AvgPool1d}, "3 was MaxPool1d and is AvgPool1d in model"),
    ({"approximate": "tanh"}, r"4\.approximate was 'none' and is 'tanh'"),
    ({"start": 0}, r"6\.start_dim was 1 and is 0"),
]


@pytest.mark.parametrize(("options", "message"), OTHER_LAYERS, ids=[message for _, message in OTHER_LAYERS])
def test_layers_that_compute_something_else(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    x = torch.randn(2, 1, 8)
    made = layered()
    made(x)
    with torch.no_grad():
        made[0].weight[1], made[0].bias[1] = 0, 0
    small = rk.compact(made.eval(), eval_only=True)
    assert small.removed
    small.save(tmp_path / "file")
    for harmless in ({}, {"p": 0.1}, {"momentum": 0.3}, {"inplace": True}):
        model = layered(**harmless)
        model(x)
        assert torch.equal(rk.load_compacted(tmp_path / "file", model).eval()(x), small.model(x))
    other = layered(**options)
    other[7] = nn.Linear(16, 2)  # shapes are the same
    with pytest.raises(ValueError, match=message):
        rk.load_compacted(tmp_path / "file", other)


def test_equal_numbers_are_the_same_in_another_type(tmp_path: Path) -> None:
    made = nn.Sequential(nn.Linear(3, 4), nn.ELU(1.0), nn.Linear(4, 2))
    nn.init.zeros_(made[0].weight[1])
    rk.compact(made).save(tmp_path / "file")
    rk.load_compacted(tmp_path / "file", nn.Sequential(nn.Linear(3, 4), nn.ELU(1), nn.Linear(4, 2)))
