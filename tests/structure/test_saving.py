"""Compacted networks through files: the same module in another process, whatever made it smaller."""

from __future__ import annotations

import copy
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import safetensors
import torch
from torch import nn

import regkernels as rk
from regkernels.structure.changes import Changes
from tests import ROOT
from tests.structure.reader import NETWORKS_READ, Tied, inputs
from tests.support.networks import NETWORKS, with_zeros

pytestmark = pytest.mark.usefixtures("one_thread")


def test_another_process_reads_the_same_networks(tmp_path: Path) -> None:
    """Bit for bit, which is what the same module on the same machine answers."""
    saved: dict[str, nn.Module] = {}
    for seed, (name, make) in enumerate(NETWORKS_READ.items()):
        torch.manual_seed(seed)
        compacted = rk.compact(with_zeros(make(), seed), eval_only=bool(seed % 2))
        assert compacted.removed, name
        compacted.save(tmp_path / name)
        saved[name] = compacted.model
    subprocess.run([sys.executable, "-m", "tests.structure.reader", tmp_path], check=True, cwd=ROOT, timeout=120)
    answers = torch.load(tmp_path / "answers")
    for name, model in saved.items():
        read = answers[name]
        state = model.state_dict()
        assert read["training"] and list(read["state"]) == list(state), name
        assert all(torch.equal(value, state[key]) for key, value in read["state"].items()), name
        assert all(value.dtype == state[key].dtype for key, value in read["state"].items()), name
        assert torch.equal(read["output"], model.eval()(inputs(name))), name


@pytest.mark.parametrize("name", NETWORKS_READ)
def test_what_is_loaded_is_what_was_compacted(name: str, tmp_path: Path) -> None:
    """In every attribute that modules print, and ready to train: no memory of the file's, no parameter of the dense model."""
    compacted = rk.compact(with_zeros(NETWORKS_READ[name](), 1))
    compacted.save(tmp_path / "file")
    dense = NETWORKS_READ[name]()
    before = copy.deepcopy(dense.state_dict())
    loaded = rk.load_compacted(tmp_path / "file", dense)
    assert repr(loaded) == repr(compacted.model) and type(loaded) is type(dense)
    assert not rk.compact(loaded).removed
    own = {tensor.data_ptr() for tensor in (*dense.parameters(), *dense.buffers())}
    for param in loaded.parameters():
        assert type(param) is nn.Parameter and param.requires_grad and param.is_leaf
        assert param.data_ptr() not in own and param.untyped_storage().nbytes() == param.nbytes
    assert all(torch.equal(value, before[key]) for key, value in dense.state_dict().items())


def test_ties_dtypes_and_what_is_frozen(tmp_path: Path) -> None:
    model = Tied().bfloat16()
    model.up.weight.data[:5] = 0
    model.up.bias.data[:5] = 0
    compacted = rk.compact(model.eval())
    compacted.model.head.double()
    compacted.save(tmp_path / "file")
    dense = Tied().requires_grad_(False).eval()
    loaded = rk.load_compacted(tmp_path / "file", dense)
    assert loaded.head.weight is loaded.embed.weight and loaded.embed.weight.dtype == torch.float64
    assert loaded.up.weight.shape == (11, 8) and loaded.up.weight.dtype == torch.bfloat16
    assert not any(param.requires_grad for param in loaded.parameters()) and not loaded.training
    assert loaded.scale == 2 and loaded.scale.data_ptr() != dense.scale.data_ptr()


def test_what_happens_to_the_file_afterwards_does_not_matter(tmp_path: Path) -> None:
    compacted = rk.compact(with_zeros(NETWORKS["MLP"][0](), 0))
    compacted.save(tmp_path / "file")
    loaded = rk.load_compacted(tmp_path / "file", NETWORKS["MLP"][0]())
    with (tmp_path / "file").open("r+b") as file:
        file.write(bytes((tmp_path / "file").stat().st_size))
    assert all(map(torch.equal, loaded.state_dict().values(), compacted.model.state_dict().values()))


def test_channels_last(tmp_path: Path) -> None:
    compacted = rk.compact(with_zeros(NETWORKS["VGG"][0](), 0).to(memory_format=torch.channels_last))
    compacted.save(tmp_path / "file")
    loaded = rk.load_compacted(tmp_path / "file", NETWORKS["VGG"][0]().to(memory_format=torch.channels_last))
    for param, expected in zip(loaded.parameters(), compacted.model.parameters(), strict=True):
        assert torch.equal(param, expected) and param.stride() == expected.stride()
    assert not all(param.is_contiguous() for param in loaded.parameters())


def test_trained_further(tmp_path: Path) -> None:
    """Saved are the weights at that time, and the file that there was is replaced."""
    compacted = rk.compact(with_zeros(NETWORKS["MLP"][0](), 0))
    compacted.save(tmp_path / "file")
    with torch.no_grad():
        for param in compacted.model.parameters():
            param.add_(1)
    compacted.save(str(tmp_path / "file"))
    loaded = rk.load_compacted(str(tmp_path / "file"), NETWORKS["MLP"][0]())
    for param, expected in zip(loaded.parameters(), compacted.model.parameters(), strict=True):
        assert torch.equal(param, expected)
    assert os.listdir(tmp_path) == ["file"]


def test_a_flat_model(tmp_path: Path) -> None:
    compacted = rk.compact(with_zeros(NETWORKS["MLP"][0](), 0))
    rk.FlatParameters(compacted.model)
    compacted.save(tmp_path / "file")
    loaded = rk.load_compacted(tmp_path / "file", NETWORKS["MLP"][0]())
    assert all(map(torch.equal, loaded.parameters(), compacted.model.parameters()))


def test_without_memory_for_the_dense_model(tmp_path: Path) -> None:
    compacted = rk.compact(with_zeros(NETWORKS["VGG"][0](), 0))
    compacted.save(tmp_path / "file")
    with torch.device("meta"):
        dense, tied = NETWORKS["VGG"][0](), Tied()
    loaded = rk.load_compacted(tmp_path / "file", dense)
    assert torch.equal(loaded.eval()(inputs("VGG")), compacted.model.eval()(inputs("VGG")))
    rk.compact(Tied()).save(tmp_path / "tied")
    with pytest.raises(TypeError, match="scale on the meta device, and no file has its values"):
        rk.load_compacted(tmp_path / "tied", tied)


class Odd(nn.Module):
    """A layer as a rule of the future could change it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.shift = nn.Parameter(torch.zeros(6)), nn.Parameter(torch.zeros(6))
        self.register_parameter("extra", None)
        self.register_buffer("mask", torch.zeros(6), persistent=False)
        self.parts, self.shape, self.kind, self.limit = [(0, 3), (3, 6)], (6,), "dense", float("nan")


def test_changes_of_any_rule(tmp_path: Path) -> None:
    dense = nn.Sequential(Odd(), Odd())
    smaller = copy.deepcopy(dense)
    odd = smaller[1]
    odd.weight, odd.extra, odd.shift = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(2)), None
    odd.mask, odd.parts, odd.shape, odd.kind = torch.ones(4), [(0, 1), (1, 4)], (4,), "small"
    changes = Changes.between(dense, smaller)
    assert changes.attributes.keys() == {"1"} and changes.attributes["1"].keys() == {"parts", "shape", "kind"}
    rk.Compacted(smaller, (), (), 0, 0, changes).save(tmp_path / "file")
    loaded = rk.load_compacted(tmp_path / "file", nn.Sequential(Odd(), Odd()))[1]
    assert torch.equal(loaded.weight, torch.ones(4)) and torch.equal(loaded.extra, torch.ones(2))
    assert loaded.shift is None and torch.equal(loaded.mask, torch.ones(4))
    assert (loaded.parts, loaded.shape, loaded.kind) == ([(0, 1), (1, 4)], (4,), "small")


def test_the_file_tells_what_it_is(tmp_path: Path) -> None:
    """Others read the tensors, and people what was changed; and others may read it that may read what is written here."""
    compacted = rk.compact(with_zeros(NETWORKS["MobileNet"][0](), 0))
    (tmp_path / "plain").touch()
    compacted.save(tmp_path / "file")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "file")}
    assert len(modes) == 1
    with safetensors.safe_open(tmp_path / "file", "pt") as file:
        metadata = file.metadata()
        assert set(file.keys()) == set(compacted.model.state_dict())
    assert metadata["format"] == "pt" and metadata["regkernels.compacted"] == "2"
    changes = json.loads(metadata["regkernels.changes"])
    assert changes["model"] == "Sequential" and changes["dense"]["3.weight"] == [12, 1, 3, 3]
    before, after = changes["attributes"]["3"]["groups"]
    assert before == 6 and after == compacted.model[3].groups == changes["compacted"]["0.weight"][0] < 6


def test_sizes_that_are_numbers_of_numpy(tmp_path: Path) -> None:
    def make() -> nn.Module:
        model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.Conv2d(8, 8, 3, groups=numpy.int64(8)), nn.Conv2d(8, 3, 1))
        with torch.no_grad():
            for weight in (model[0].weight, model[1].weight, model[2].weight.transpose(0, 1)):
                weight[:2] = 0
        return model

    compacted, images = rk.compact(make()), torch.randn(1, 2, 9, 9)
    compacted.save(tmp_path / "small")
    loaded = rk.load_compacted(tmp_path / "small", make())
    assert loaded[1].groups == 6 and torch.equal(loaded(images), compacted.model(images))
