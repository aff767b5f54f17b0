"""Writes compacted models to disk, and reads them back."""

from __future__ import annotations

import copy
import os
import uuid
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from regkernels.distributed import sharded
from regkernels.structure import computed, layers
from regkernels.structure.changes import Changes, tensors_of
from regkernels.structure.report import with_values

_VERSION_KEY, _VERSION = "regkernels.compacted", "2"
_CHANGES_KEY = "regkernels.changes"


def save(model: nn.Module, changes: Changes, path: str | os.PathLike[str]) -> None:
    """Writes what ``model``, which `regkernels.compact` returned, has now; see `Compacted.save`."""
    safetensors = _safetensors("Compacted.save")
    target = _writable(path)
    sharded.check_whole_model(model, "save a model that is not spread over ranks")
    computed.check_plain(model)
    difference = changes.why_not_compacted(model)
    if difference is not None:
        raise ValueError(
            f"model is no longer what compact made of it: {difference}; undo that, or compact the model as it is now"
        )
    for name, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise TypeError(
                f"{name or 'model'} ({type(module).__name__}) has state besides its tensors (get_extra_state), which safetensors "
                "cannot hold; save that yourself, and a model without it here"
            )
    found = tensors_of(model)
    tensors = {name: _plain_copy(name, found[name]) for name in changes.stored()}
    metadata = {"format": "pt", _VERSION_KEY: _VERSION, _CHANGES_KEY: changes.to_json()}
    _write(safetensors, tensors, metadata, target)


def load_compacted(path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Returns the compacted model that `Compacted.save` has written, with its weights.

    Nothing in the file is run: it has numbers, shapes, names of classes and attributes of layers. Everything else comes from ``model``,
    and has to be as it was: what forward of classes of your own does, say, and their attributes.

    Args:
        path: the file.
        model: a dense model as it was given to `compact`: made with the same arguments, its weights do not matter. Not changed. Where
            its parameters are, those that are read will be, or on the CPU if ``model`` is on the meta device.

    Returns:
        A model of the class of ``model``, in its mode, with the weights and buffers, and in the dtypes, that were saved. Tied
        weights are tied, and a parameter requires gradients where it does in ``model``.

    Raises:
        FileNotFoundError, IsADirectoryError: for a path without a file.
        ValueError: for a file that is truncated, that `Compacted.save` has not written or another version has, and for a model of
            other classes, names or shapes than the one that was compacted, or with layers of torch that compute with something else, such
            as another padding, eps or slope.
        TypeError: for what is no module, or is spread over ranks.
        ImportError: without safetensors.
    """
    safetensors = _safetensors("load_compacted")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    sharded.check_whole_model(model, "pass a model that is not spread, and spread what load_compacted returns")
    computed.check_plain(model)
    source = _readable(path)
    try:
        with safetensors.safe_open(source, "pt") as file:
            changes = _changes(source, file.metadata() or {})
            _check_fits(source, changes, model)
            tensors = _tensors(source, changes, file)
    except safetensors.SafetensorError as error:
        raise _damaged(source, f"is no safetensors file, or not all of one ({error})") from error
    return _made(source, changes, model, tensors)


def _safetensors(user: str) -> ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(f"{user} needs safetensors: pip install safetensors") from error
    return safetensors


# --- writing ---


def _path(path: object) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a string or a path, got {type(path).__name__}")
    found = Path(os.path.realpath(os.fspath(path)))
    if found.is_dir():
        raise IsADirectoryError(f"path {str(path)!r} is a directory; give the name of a file in it")
    return found


def _writable(path: object) -> Path:
    found = _path(path)
    if found.exists() and not found.is_file():
        raise ValueError(f"path {str(path)!r} is a device or a pipe, which a file would replace; give another name")
    if not found.parent.is_dir():
        raise FileNotFoundError(f"path {str(path)!r} is in no directory that exists; make {str(found.parent)!r} first")
    return found


def _plain_copy(name: str, tensor: Tensor) -> Tensor:
    with_values(name, tensor)
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
        raise TypeError(
            f"{name} is a {type(tensor).__name__} of layout {tensor.layout}, which safetensors cannot hold; save models of plain tensors"
        )
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _write(safetensors: Any, tensors: dict[str, Tensor], metadata: dict[str, str], target: Path) -> None:
    """Writes beside ``target`` and renames: whoever reads has the old file or the new one, and so has a disk that runs full."""
    unfinished = target.with_name(f".{uuid.uuid4().hex}.unfinished")
    try:
        unfinished.touch(exist_ok=False)
        mode = unfinished.stat().st_mode  # others may read the file as far as they may those of open()
        safetensors.torch.save_file(tensors, unfinished, metadata)
        unfinished.chmod(mode)
        with unfinished.open("rb") as written:
            os.fsync(written.fileno())
        unfinished.replace(target)
    except KeyError as error:
        raise TypeError(f"safetensors cannot hold a tensor of {error.args[0]}; convert the model first") from error
    finally:
        unfinished.unlink(missing_ok=True)


# --- reading ---


def _readable(path: object) -> Path:
    found = _path(path)
    if not found.is_file():
        raise FileNotFoundError(f"path {str(path)!r} is no file; give the one that Compacted.save has written")
    return found


def _damaged(source: Path, what: str) -> ValueError:
    return ValueError(f"path {str(source)!r} {what}; copy it once more, or save it again with Compacted.save")


def _changes(source: Path, metadata: dict[str, str]) -> Changes:
    version = metadata.get(_VERSION_KEY)
    if version is None:
        raise ValueError(
            f"path {str(source)!r} is a safetensors file that Compacted.save has not written; for weights alone there is "
            "safetensors.torch.load_model"
        )
    if version != _VERSION:
        raise ValueError(
            f"path {str(source)!r} has version {version!r} of the format, and this regkernels reads {_VERSION!r}; "
            "use the version of regkernels that saved it, or save it again with this one"
        )
    try:
        return Changes.from_json(metadata.get(_CHANGES_KEY, ""))
    except ValueError as error:
        raise _damaged(source, f"is damaged: {error}") from error


def _check_fits(source: Path, changes: Changes, model: nn.Module) -> None:
    difference = changes.why_not_dense(model)
    if difference is not None:
        raise ValueError(
            f"model is not the one that path {str(source)!r} was made from: {difference}; build the dense model with the arguments "
            "that it had when it was given to compact"
        )


def _tensors(source: Path, changes: Changes, file: Any) -> dict[str, Tensor]:
    """Reads copies: safetensors' own tensors are the file in memory, which changes when somebody writes into it."""
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  (it is no dictionary)
    if shapes != changes.stored():
        raise _damaged(source, "is damaged: its tensors are not those that it says")
    return {name: file.get_tensor(name).clone() for name in shapes}


def _made(source: Path, changes: Changes, model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """Copies ``model`` with other tensors in the places of its own, wherever they are referred to."""
    memo: dict[int, Any] = {}
    for name, old in tensors_of(model).items():
        if name in tensors:
            memo[id(old)] = _in_place_of(old, layers.laid_out_like(old, tensors[name]), name, source)
    smaller = copy.deepcopy(model, memo)
    for name in changes.dropped():
        owner, _, key = name.rpartition(".")
        setattr(smaller.get_submodule(owner), key, None)
    for name in changes.added():
        owner, _, key = name.rpartition(".")
        module = smaller.get_submodule(owner)
        like = next(module.parameters(recurse=False), nn.Parameter(torch.empty(0)))
        setattr(module, key, _in_place_of(like, tensors[name], name, source))
    for name, changed in changes.attributes.items():
        for key, (_, after) in changed.items():
            setattr(smaller.get_submodule(name), key, after)
    for name, tensor in tensors_of(smaller).items():
        if tensor.is_meta:
            raise TypeError(
                f"model has {name} on the meta device, and no file has its values; build the model on the CPU"
            )
    return smaller


def _in_place_of(old: Tensor, values: Tensor, name: str, source: Path) -> Tensor:
    if (old.is_floating_point(), old.is_complex()) != (values.is_floating_point(), values.is_complex()):
        raise _damaged(source, f"is damaged: {name} is of {values.dtype}, and of {old.dtype} in model")
    values = values if old.is_meta else values.to(old.device)
    return nn.Parameter(values, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else values
