"""Files of models and optimizers whose tensors are views of a few large buffers: right, and no larger than others."""

from __future__ import annotations

import copy
import gc
import io
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from regkernels import FlatParameters
from tests.optim.checkpoint.cases import Model, assert_identical, ours, snapshot, through_a_file, train
from tests.support.training import within


def _size(value: Any) -> int:
    file = io.BytesIO()
    torch.save(value, file)
    return file.tell()


def _flat(dtype: torch.dtype) -> tuple[nn.Module, FlatParameters, nn.Module]:
    """A model in buffers, and one of the same weights that is not. 20 layers of 4 kB, and a tied one."""
    model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(20)), nn.BatchNorm1d(32)).to(dtype)
    model[7].weight = model[3].weight
    plain = copy.deepcopy(model)
    return model, FlatParameters(model), plain


DTYPES = [torch.float32, torch.bfloat16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@each_dtype
def test_safetensors_of_a_model(dtype: torch.dtype, tmp_path: Path) -> None:
    model, flat, plain = _flat(dtype)
    for net, path in ((model, tmp_path / "flat"), (plain, tmp_path / "plain")):
        safetensors.torch.save_model(net, path)
    assert (tmp_path / "flat").read_bytes() == (tmp_path / "plain").read_bytes()
    for target in (_flat(dtype)[0], copy.deepcopy(plain)):
        for param in target.parameters():
            nn.init.zeros_(param)
        safetensors.torch.load_model(target, tmp_path / "flat")
        assert_identical(dict(target.state_dict()), dict(plain.state_dict()))
    safetensors.torch.load_model(model, tmp_path / "plain")
    assert all(within(param, flat.weights) for param in model.parameters()), "loading has not moved the parameters"


@each_dtype
def test_safetensors_of_a_dictionary(dtype: torch.dtype, tmp_path: Path) -> None:
    """save_file takes views that do not overlap; a tied weight it refuses, flat or not."""
    model, _, plain = _flat(dtype)
    for net, path in ((model, tmp_path / "flat"), (plain, tmp_path / "plain")):
        packed = dict(net.state_dict())
        with pytest.raises(RuntimeError, match="share memory"):
            safetensors.torch.save_file(packed, path)
        del packed["7.weight"]
        safetensors.torch.save_file(packed, path)
    assert (tmp_path / "flat").read_bytes() == (tmp_path / "plain").read_bytes()
    loaded = safetensors.torch.load_file(tmp_path / "flat")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in plain.state_dict().items() if name in loaded)


def test_safetensors_of_an_optimizer(tmp_path: Path) -> None:
    """States are views, too."""
    model = Model(torch.bfloat16)
    optimizer = ours("adam", model)
    train(optimizer, model, range(9))
    states = optimizer.state_dict()["state"]
    packed = {f"{key}.{name}": value for key, state in states.items() for name, value in state.items()}
    safetensors.torch.save_file(packed, tmp_path / "states")
    loaded = safetensors.torch.load_file(tmp_path / "states")
    assert loaded.keys() == packed.keys() and all(torch.equal(loaded[name], packed[name]) for name in packed)
    assert (tmp_path / "states").stat().st_size < 1.1 * sum(v.nbytes for v in packed.values()) + 8192


@each_dtype
def test_a_whole_model_is_written_once(dtype: torch.dtype) -> None:
    model, _, plain = _flat(dtype)
    assert _size(model.state_dict()) <= _size(plain.state_dict())
    loaded = through_a_file(model.state_dict())
    assert all(torch.equal(loaded[name], tensor) for name, tensor in plain.state_dict().items())


@each_dtype
def test_a_part_of_a_model_is_no_larger_than_that(dtype: torch.dtype) -> None:
    """torch.save writes the storage behind a tensor, all of it."""
    model, _, plain = _flat(dtype)
    parts = [{name: value for name, value in net.state_dict().items() if name[:3] == "19."} for net in (model, plain)]
    assert _size(parts[0]) == _size(parts[1]) < 1.2 * sum(v.nbytes for v in parts[0].values()) + 4096
    assert_identical(*map(through_a_file, parts))


def test_no_two_parameters_look_tied() -> None:
    """Serialisers find tied weights by comparing storages, and leave out all but one."""
    model, _, plain = _flat(torch.float32)
    for net in (model, plain):
        storages = {}
        for name, value in net.state_dict().items():
            storages.setdefault(value.untyped_storage().data_ptr(), []).append(name)
            assert value.untyped_storage().nbytes() == value.nbytes
        assert [names for names in storages.values() if len(names) > 1] == [["3.weight", "7.weight"]]


def test_the_buffer_lives_as_long_as_a_parameter() -> None:
    model, flat, plain = _flat(torch.float32)
    weight = model[5].weight
    del model, flat
    gc.collect()
    noise = [torch.full((32, 32), 7.0) for _ in range(50)]
    assert torch.equal(weight, plain[5].weight) and len(noise) == 50


@pytest.mark.parametrize("cycles", [1, 3])
@pytest.mark.parametrize("flat", [False, True], ids=["", "flat"])
@each_dtype
def test_an_optimizer_is_written_once(dtype: torch.dtype, flat: bool, cycles: int) -> None:
    """Also after files were loaded, and where parameters got their first gradient late."""
    model = Model(dtype)
    if flat:
        FlatParameters(model)
    optimizer = ours("amsgrad", model)
    for cycle in range(cycles):
        train(optimizer, model, range(5 * cycle, 5 * cycle + 5))
        packed = optimizer.state_dict()
        apart = snapshot(packed)  # each tensor in a storage of its own
        assert _size(packed) <= _size(apart)
        optimizer = ours("amsgrad", model)
        optimizer.load_state_dict(through_a_file(packed))
        assert _size(optimizer.state_dict()) <= _size(apart), "before the first step"
