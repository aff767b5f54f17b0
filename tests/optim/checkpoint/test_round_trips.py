"""A state dict on its way through wrappers, other devices, other dtypes and files keeps every bit of float32 states."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regkernels import FlatParameters, optim
from tests.optim.checkpoint.cases import (
    PAIRS,
    PRECISIONS,
    Model,
    Packed,
    assert_identical,
    ours,
    snapshot,
    through_a_file,
    train,
)


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return type(value)({key: _map(item, change) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        return type(value)(_map(item, change) for item in value)
    return value


def _accelerate(packed: Packed) -> Packed:
    """What Accelerate does when it wraps an optimizer: everything to the device, tensor by tensor."""
    return _map(packed, lambda tensor: tensor.to("cpu", non_blocking=True))


def _wider(packed: Packed) -> Packed:
    return _map(packed, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def _mapped(packed: Packed) -> Packed:
    """Through NumPy, which knows no bfloat16 and has not to."""
    return _map(
        packed, lambda tensor: torch.from_numpy(tensor.numpy().copy()) if tensor.dtype == torch.float32 else tensor
    )


WAYS: dict[str, Callable[[Packed], Packed]] = {
    "as it is": lambda packed: packed,
    "Accelerate": _accelerate,
    "float64": _wider,
    "NumPy": _mapped,
    "deepcopy": copy.deepcopy,
    "pickle": lambda packed: pickle.loads(pickle.dumps(packed)),
    "file": through_a_file,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "precision"), PAIRS)
def test_every_bit_survives(name: str, precision: str, way: str) -> None:
    dtype, options = PRECISIONS[precision]
    model = Model(dtype)
    optimizer = ours(name, model, **options)
    train(optimizer, model, range(9))
    other = copy.deepcopy(model)
    before = snapshot(optimizer.state_dict())
    loaded = ours(name, other, **options)
    for _ in range(2):  # wrapping twice must not round twice
        loaded.load_state_dict(WAYS[way](optimizer.state_dict()))
        loaded.load_state_dict(WAYS[way](loaded.state_dict()))
    states = loaded.state_dict()["state"]
    assert states.keys() == before["state"].keys()
    for key, state in before["state"].items():
        for what, value in state.items():
            if what != "step":
                assert_identical(states[key][what].detach().clone(), value, what)
    train(loaded, other, range(9, 14))  # first: until its first step it may share tensors, as in torch
    train(optimizer, model, range(9, 14))
    assert_identical(dict(model.state_dict()), dict(other.state_dict()))
    assert_identical(
        snapshot([optimizer.state[p] for p in model.parameters()]),
        snapshot([loaded.state[p] for p in other.parameters()]),
    )


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_file_that_is_mapped_into_memory_is_only_read(precision: str, flat: bool, tmp_path: Path) -> None:
    """And may be replaced by the next checkpoint while the run goes on."""
    dtype, options = PRECISIONS[precision]
    model = Model(dtype)
    if flat:
        FlatParameters(model)
    optimizer = ours("amsgrad", model, **options)
    train(optimizer, model, range(8))
    path = tmp_path / "states.pt"
    torch.save(optimizer.state_dict(), path)
    written = path.read_bytes()
    other = copy.deepcopy(model)
    loaded = ours("amsgrad", other, **options)
    loaded.load_state_dict(torch.load(path, mmap=True, weights_only=True))
    train(loaded, other, range(8, 10))
    assert path.read_bytes() == written
    path.unlink()
    train(loaded, other, range(10, 12))
    train(optimizer, model, range(8, 12))
    assert_identical(dict(model.state_dict()), dict(other.state_dict()))


@pytest.mark.parametrize("cut", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_noticed(cut: float, tmp_path: Path) -> None:
    """By torch, before anything could be loaded; the optimizer that was to take it goes on."""
    model = Model(torch.float32)
    optimizer = ours("adam", model)
    train(optimizer, model, range(3))
    path = tmp_path / "states.pt"
    torch.save(optimizer.state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * cut)])
    before = snapshot(optimizer.state_dict())
    with pytest.raises((RuntimeError, EOFError, OSError)):  # torch's own, by how much is left
        optimizer.load_state_dict(torch.load(path, weights_only=True))
    assert_identical(snapshot(optimizer.state_dict()), before)


@pytest.mark.parametrize("kind", ["Adam", "SGD"])
def test_hyper_parameters_that_are_tensors(kind: str) -> None:
    """They are part of the file, and each optimizer has its own after loading."""
    options: dict[str, Any] = {"lr": torch.tensor(0.02), "l1": torch.tensor(1e-3)}
    if kind == "Adam":
        options["betas"] = (torch.tensor(0.8), torch.tensor(0.99))
    model = Model(torch.float32)
    optimizer = getattr(optim, kind)(model.parameters(), **options)
    train(optimizer, model, range(4))
    other = copy.deepcopy(model)
    loaded = getattr(optim, kind)(other.parameters())
    loaded.load_state_dict(through_a_file(optimizer.state_dict()))
    for net, steps in ((model, optimizer), (other, loaded)):
        train(steps, net, range(4, 6))
        steps.param_groups[0]["lr"].mul_(0.5)
        train(steps, net, range(6, 8))
    assert_identical(dict(model.state_dict()), dict(other.state_dict()))
    assert isinstance(loaded.param_groups[0]["l1"], Tensor)
