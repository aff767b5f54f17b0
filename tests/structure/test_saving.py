"""Smaller models on disk: written here, read in another process, and refused where they do not fit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import regkernels as rk
from tests import ROOT

pytestmark = pytest.mark.usefixtures("one_thread")


def net(width: int = 6) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(16 * width, 2, bias=False)
    )


def compacted() -> rk.Compacted:
    model = net()
    with torch.no_grad():
        model[0].weight[[1, 4]] = 0
        model[0].bias.fill_(1)
        model[1].bias.fill_(1)  # so that the last layer gets a bias
    return rk.compact(model, eval_only=True)


_PROGRAM = """
import sys, torch, regkernels as rk
from tests.structure.test_saving import net
torch.manual_seed(5)
model = rk.load_compacted(sys.argv[1], net())
torch.save(model.eval()(torch.load(sys.argv[2])), sys.argv[3])
"""


def test_another_process_computes_the_same(tmp_path: Path) -> None:
    small = compacted()
    small.save(tmp_path / "small.safetensors")
    x = torch.randn(3, 1, 6, 6)
    torch.save(x, tmp_path / "x.pt")
    files = [str(tmp_path / name) for name in ("small.safetensors", "x.pt", "y.pt")]
    subprocess.run([sys.executable, "-c", _PROGRAM, *files], cwd=ROOT, check=True, timeout=120)
    with torch.no_grad():
        assert torch.equal(torch.load(files[2]), small.model.eval()(x))


def test_what_is_loaded_trains_and_can_be_saved_again(tmp_path: Path) -> None:
    small = compacted()
    small.save(tmp_path / "small.safetensors")
    model = net().double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loaded = rk.load_compacted(tmp_path / "small.safetensors", model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert loaded[0].out_channels == 4 and loaded[0].weight.dtype == torch.float64 and loaded.training
    loaded(torch.randn(3, 1, 6, 6).double()).sum().backward()
    assert all(param.grad is not None for param in loaded.parameters())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.hidden, self.last = nn.Embedding(5, 4), nn.Linear(4, 6), nn.Linear(6, 4)
        self.out = nn.Linear(4, 5, bias=False)
        self.out.weight = self.words.weight

    def forward(self, x: Tensor) -> Any:
        return self.out(self.last(self.hidden(self.words(x)).relu()))


def test_tied_weights_are_written_once_and_stay_tied(tmp_path: Path) -> None:
    model = Tied()
    with torch.no_grad():
        model.hidden.weight[1] = 0
    small = rk.compact(model)
    small.save(tmp_path / "tied.safetensors")
    assert "out.weight" not in load_file(tmp_path / "tied.safetensors")
    loaded = rk.load_compacted(tmp_path / "tied.safetensors", Tied())
    assert loaded.out.weight is loaded.words.weight and loaded.hidden.out_features == 5
    x = torch.arange(5)
    assert torch.equal(loaded(x), small.model(x))


def _with(path: Path, old: str, new: str) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = {key: text.replace(old, new) for key, text in file.metadata().items()}
    save_file(load_file(path), path, metadata=metadata)


def _other_version(path: Path) -> None:
    _with(path, '"version": 1', '"version": 2')


def _forged(path: Path) -> None:
    _with(path, '"out_channels": 4', '"forward": 4')


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _without_plan(path: Path) -> None:
    save_file(load_file(path), path)


DAMAGED = {
    "truncated": (_truncated, "is truncated or no safetensors file .*save it again"),
    "empty": (lambda path: path.write_bytes(b""), "is truncated or no safetensors file"),
    "another version": (_other_version, "not of version 1"),
    "what is no size": (_forged, "forward of 0 is no size"),
    "without a plan": (_without_plan, "only files of compacted.save"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_refused(case: str, tmp_path: Path) -> None:
    damage, message = DAMAGED[case]
    path = tmp_path / "small.safetensors"
    compacted().save(path)
    damage(path)
    with pytest.raises(ValueError, match=message):
        rk.load_compacted(path, net())


def test_other_models_are_refused(tmp_path: Path) -> None:
    small = compacted()
    small.save(tmp_path / "small.safetensors")
    with pytest.raises(
        ValueError, match=r"0.bias was of shape \(6,\), and in model it is of shape \(7,\); give a model"
    ):
        rk.load_compacted(tmp_path / "small.safetensors", net(7))
    with pytest.raises(ValueError, match="give a model that was built as the one that was compacted"):
        rk.load_compacted(tmp_path / "small.safetensors", small.model)
    with pytest.raises(ValueError, match="is of a Sequential, and model is a Linear"):
        rk.load_compacted(tmp_path / "small.safetensors", nn.Linear(2, 2))
    with pytest.raises(FileNotFoundError, match=r"compacted\.save"):
        rk.load_compacted(tmp_path / "missing", net())


def test_a_missing_safetensors_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = compacted()
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match="pip install"):
        small.save(tmp_path / "small.safetensors")
