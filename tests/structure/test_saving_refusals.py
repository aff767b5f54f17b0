"""Files and models that do not fit are told so, and nothing is changed: neither the model nor what lies on the disk."""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

import regkernels as rk
from tests.structure.reader import Tied

pytestmark = pytest.mark.usefixtures("one_thread")


def dense() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))


def compacted(make: Callable[[], nn.Module] = dense) -> rk.Compacted:
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module is not model[-1]:
                module.weight[1] = 0
                module.bias[1] = 0
    return rk.compact(model)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "file"
    compacted().save(path)
    return path


class Other(nn.Sequential):
    pass


class Stateful(nn.ReLU):
    def get_extra_state(self) -> int:
        return 1


def padded() -> nn.Module:
    model = dense()
    model[0].out_channels = 5
    return model


def longer() -> nn.Module:
    return nn.Sequential(*dense(), nn.ReLU(), nn.Linear(2, 2))


def narrower() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))


MODELS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no module": (lambda: dense().state_dict(), TypeError, "model must be a torch.nn.Module, got OrderedDict"),
    "another class": (lambda: Other(*dense()), ValueError, "made from Sequential, and model is Other; build the dense"),
    "wrapped": (lambda: nn.DataParallel(dense()), ValueError, "and model is DataParallel"),
    "other sizes": (narrower, ValueError, r"0\.weight was 4 x 1 x 3 x 3 and is 3 x 1 x 3 x 3"),
    "more layers": (longer, ValueError, r"6\.weight was not there and is 2 x 2"),
    "fewer layers": (lambda: dense()[:4], ValueError, r"4\.weight was 2 x 16 and is not there"),
    "compacted already": (lambda: compacted().model, ValueError, r"0\.weight was 4 x 1 x 3 x 3 and is 3 x 1"),
    "another attribute": (padded, ValueError, r"0\.out_channels was 4 and is 5"),
    "no shapes yet": (lambda: nn.Sequential(nn.LazyLinear(2)), TypeError, "run the model once on a batch"),
    "pruned": (
        lambda: nn.Sequential(*[prune.l1_unstructured(dense()[0], "weight", 1), *dense()[1:]]),
        ValueError,
        r"prune\.remove\(module, 'weight'\) first",
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_models_that_do_not_fit(case: str, saved: Path) -> None:
    make, error, message = MODELS[case]
    model = make()
    before = copy.copy(model.state_dict()) if isinstance(model, nn.Module) and case != "no shapes yet" else {}
    with pytest.raises(error, match=message):
        rk.load_compacted(saved, model)
    assert all(value is before[key] or torch.equal(value, before[key]) for key, value in before.items())


def test_ties_and_biases_that_do_not_fit(tmp_path: Path) -> None:
    rk.compact(Tied()).save(tmp_path / "tied")
    model = Tied()
    model.head.weight = nn.Parameter(model.embed.weight.detach().clone())
    with pytest.raises(ValueError, match=r"head\.weight was tied to embed\.weight and is not there"):
        rk.load_compacted(tmp_path / "tied", model)
    large = nn.Sequential(nn.Linear(2, 3), nn.Sigmoid(), nn.Linear(3, 1, bias=False))
    nn.init.zeros_(large[0].weight[1])
    small = rk.compact(large)
    assert small.changes.added() == ["2.bias"]
    small.save(tmp_path / "biased")
    with pytest.raises(ValueError, match=r"2\.bias was not there and is 1"):
        rk.load_compacted(tmp_path / "biased", nn.Sequential(nn.Linear(2, 3), nn.Sigmoid(), nn.Linear(3, 1)))


# --- files ---


def rewritten(source: Path, **changed: Any) -> bytes:
    """Returns the file with other tensors or metadata, as someone could make it by hand."""
    with safetensors.safe_open(source, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    told = json.loads(metadata["regkernels.changes"])
    told.update(changed.pop("told", {}))
    metadata["regkernels.changes"] = changed.pop("text", json.dumps(told))
    metadata |= changed.pop("metadata", {})
    tensors |= changed.pop("tensors", {})
    assert not changed
    return safetensors.torch.save(tensors, metadata)


FILES: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "empty": (lambda path: b"", "is no safetensors file, or not all of one"),
    "truncated": (lambda path: path.read_bytes()[:-1], "copy it once more, or save it again"),
    "half": (lambda path: path.read_bytes()[: path.stat().st_size // 2], "not all of one"),
    "longer": (lambda path: path.read_bytes() + b"0", "is no safetensors file"),
    "a pickle": (lambda path: b"\x80\x04\x95" + 60 * b"\0", "is no safetensors file"),
    "weights alone": (
        lambda path: safetensors.torch.save(dict(dense().state_dict())),
        "that Compacted.save has not written",
    ),
    "of tomorrow": (
        lambda path: rewritten(path, metadata={"regkernels.compacted": "3"}),
        "has version '3' of the format, and this regkernels reads '2'",
    ),
    "without changes": (lambda path: rewritten(path, text=""), "is damaged: what it says of the model cannot be read"),
    "a list of changes": (lambda path: rewritten(path, text="[]"), "cannot be read"),
    "nested": (lambda path: rewritten(path, text="[" * 100_000), "RecursionError"),
    "shapes of words": (lambda path: rewritten(path, told={"dense": {"0.weight": "4"}}), "expected list, got str"),
    "a size too large": (lambda path: rewritten(path, told={"compacted": {"0.weight": [1e99]}}), "expected int"),
    "an attribute more": (
        lambda path: rewritten(path, told={"attributes": {"0": {"forward": [None, "x"]}}}),
        r"0\.forward was None and is 'missing'",
    ),
    "another module's": (lambda path: rewritten(path, told={"attributes": {"9": {"a": [1, 2]}}}), r"9\.a was 1"),
    "a tensor more": (lambda path: rewritten(path, tensors={"x": torch.ones(2)}), "its tensors are not those"),
    "another shape": (lambda path: rewritten(path, tensors={"4.bias": torch.ones(3)}), "its tensors are not those"),
    "another kind of number": (
        lambda path: rewritten(path, tensors={"4.bias": torch.ones(2, dtype=torch.int64)}),
        r"4\.bias is of torch\.int64, and of torch\.float32 in model",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_do_not_fit(case: str, saved: Path, tmp_path: Path) -> None:
    make, message = FILES[case]
    path = tmp_path / "file"
    path.write_bytes(make(saved))
    with pytest.raises(ValueError, match=message) as raised:
        rk.load_compacted(path, dense())
    assert repr(str(path)) in str(raised.value)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_damaged_files_are_errors_or_change_numbers_alone(
    data: st.DataObject, saved: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Bytes that are wrong lead to no other error than ValueError, and to no module of other shapes."""
    content = bytearray(saved.read_bytes())
    header = int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, header + 20))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    try:
        loaded = rk.load_compacted(path, dense())
    except ValueError:
        return
    expected = compacted().model.state_dict()
    assert {key: value.shape for key, value in loaded.state_dict().items()} == {
        key: value.shape for key, value in expected.items()
    }


# --- paths, and what cannot be saved ---


def test_paths(saved: Path, tmp_path: Path) -> None:
    for act in (compacted().save, lambda path: rk.load_compacted(path, dense())):
        with pytest.raises(IsADirectoryError, match="is a directory; give the name of a file in it"):
            act(tmp_path)
        with pytest.raises(TypeError, match="path must be a string or a path, got int"):
            act(3)
    with pytest.raises(FileNotFoundError, match=r"is no file; give the one that Compacted\.save has written"):
        rk.load_compacted(tmp_path / "none", dense())
    with pytest.raises(FileNotFoundError, match=r"is in no directory that exists; make '.*none' first"):
        compacted().save(tmp_path / "none" / "file")
    with pytest.raises(ValueError, match="is a device or a pipe"):
        compacted().save(os.devnull)
    assert os.listdir(tmp_path) == []


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    compacted().save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").is_file()


def test_a_model_that_has_changed_since(tmp_path: Path) -> None:
    for change, error, message in CHANGES:
        small = compacted()
        change(small.model)
        (tmp_path / "file").write_text("as it was")
        with pytest.raises(error, match=message):
            small.save(tmp_path / "file")
        assert (tmp_path / "file").read_text() == "as it was" and os.listdir(tmp_path) == ["file"]


def _complex(model: Any) -> None:
    model[4].weight = nn.Parameter(model[4].weight.detach().to(torch.complex128))


def _sparse(model: Any) -> None:
    model[4].weight = nn.Parameter(model[4].weight.detach().to_sparse())


CHANGES: list[tuple[Callable[[Any], object], type[Exception], str]] = [
    (lambda model: model.append(nn.Linear(2, 2)), ValueError, r"5\.bias was not there and is 2; undo that, or"),
    (lambda model: model[4].register_parameter("bias", None), ValueError, r"4\.bias was 2 and is not there"),
    (lambda model: prune.l1_unstructured(model[4], "bias", 1), ValueError, r"prune\.remove\(module, 'bias'\) first"),
    (lambda model: model.to("meta"), TypeError, "is on the meta device"),
    (_complex, TypeError, r"cannot hold a tensor of torch\.complex128; convert the model first"),
    (lambda model: setattr(model, "2", Stateful()), TypeError, r"2 \(Stateful\) has state besides its tensors"),
    (_sparse, TypeError, r"4\.weight is a Parameter of layout torch\.sparse_coo"),
]


def test_nothing_is_left_of_what_could_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("as it was")

    def full(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="no space left"):
        compacted().save(tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "as it was"


def test_without_safetensors(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r"Compacted\.save needs safetensors: pip install safetensors"):
        compacted().save(tmp_path / "file")
    with pytest.raises(ImportError, match="load_compacted needs safetensors: pip install safetensors"):
        rk.load_compacted(saved, dense())
