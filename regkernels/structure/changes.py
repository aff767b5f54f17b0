"""Describes how a compacted model differs from the dense one, whatever rule made the difference."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import numpy
from torch import Tensor, nn

from regkernels.structure.report import with_values

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Changes:
    """Holds what turns a dense model into the compacted one, but for the numbers in its tensors, and what the dense one computes with."""

    model: str
    """The name of its class."""
    dense: Mapping[str, Shape]
    """Shapes of all parameters and buffers of the dense model, by every name that they have."""
    ties: Mapping[str, str]
    """Further names of tensors, and the first name of each."""
    compacted: Mapping[str, Shape]
    """What ``dense`` has become, with the biases that were added."""
    attributes: Mapping[str, Mapping[str, tuple[Any, Any]]]
    """What attributes of modules were, and what they are now, by the names of the module and the attribute."""
    modules: Mapping[str, Mapping[str, Any]]
    """Of each module of the dense model its class and, of torch's layers, what they compute with: padding, eps, a slope."""

    @classmethod
    def between(cls, dense: nn.Module, smaller: nn.Module) -> Changes:
        before, after = tensors_of(dense), tensors_of(smaller)
        resized = {name for name, tensor in before.items() if name in after and after[name].shape != tensor.shape}
        names, names_after = stored_names(dense) | resized, stored_names(smaller) | resized
        changed = {name: _changed(module, smaller.get_submodule(name)) for name, module in dense.named_modules()}
        return cls(
            type(dense).__name__,
            _shapes(before, names),
            _ties(before, names),
            _shapes(after, names_after),
            {name: attributes for name, attributes in changed.items() if attributes},
            {name: _computes_with(module) for name, module in _modules(dense)},
        )

    def stored(self) -> dict[str, Shape]:
        """Returns the shapes of what is written: each tensor of the compacted model once, by its first name."""
        return {name: shape for name, shape in self.compacted.items() if name not in self.ties}

    def why_not_dense(self, model: nn.Module) -> str | None:
        """Tells in what ``model`` differs from the dense one."""
        if type(model).__name__ != self.model:
            return f"it was made from {self.model}, and model is {type(model).__name__}"
        return (
            _difference(model, self.dense, self.ties)
            or self._other_modules(model)
            or self._other_attributes(model)
            or next((f"model has no {name} to be made" for name in self.added() if not _is_vacant(model, name)), None)
        )

    def why_not_compacted(self, model: nn.Module) -> str | None:
        """Tells in what ``model`` differs from the compacted one."""
        return _difference(model, self.compacted, self.ties)

    def added(self) -> list[str]:
        return [name for name in self.compacted if name not in self.dense]

    def dropped(self) -> list[str]:
        return [name for name in self.dense if name not in self.compacted]

    def _other_attributes(self, model: nn.Module) -> str | None:
        modules = dict(model.named_modules())
        for name, attributes in self.attributes.items():
            for key, (before, _) in attributes.items():
                own = _plain_attributes(modules[name]) if name in modules else {}
                if key not in own or _text(own[key]) != _text(before):
                    return f"{_joined(name, key)} was {before!r} and is {own.get(key, 'missing')!r} in model"
        return None

    def _other_modules(self, model: nn.Module) -> str | None:
        found = {name: _computes_with(module) for name, module in _modules(model)}
        for name in dict.fromkeys((*self.modules, *found)):
            before, now = ({"class": "missing", **places.get(name, {})} for places in (self.modules, found))
            if before["class"] != now["class"]:
                return f"{name} was {before['class']} and is {now['class']} in model"
            for key in dict.fromkeys((*before, *now)):
                # Equal numbers are the same in another type: a slope of 1 and of 1.0.
                if before.get(key) != now.get(key) and _text(before.get(key)) != _text(now.get(key)):
                    return f"{_joined(name, key)} was {before.get(key)!r} and is {now.get(key)!r} in model"
        return None

    def to_json(self) -> str:
        attributes = {
            name: {key: [_encoded(before), _encoded(after)] for key, (before, after) in changed.items()}
            for name, changed in self.attributes.items()
        }
        modules = {name: {key: _encoded(value) for key, value in own.items()} for name, own in self.modules.items()}
        return json.dumps({**vars(self), "attributes": attributes, "modules": modules})

    @classmethod
    def from_json(cls, text: str) -> Changes:
        """Reads what `to_json` wrote; raises ValueError for what it cannot have written."""
        try:
            data = json.loads(text)
            return cls(
                _of_type(str, data["model"]),
                {name: _shape(shape) for name, shape in data["dense"].items()},
                {name: _of_type(str, first) for name, first in data["ties"].items()},
                {name: _shape(shape) for name, shape in data["compacted"].items()},
                {name: _decoded_pairs(changed) for name, changed in data["attributes"].items()},
                {name: {key: _decoded(value) for key, value in own.items()} for name, own in data["modules"].items()},
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"what it says of the model cannot be read ({type(error).__name__}: {error})") from error


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Returns parameters and buffers, tied ones by each of their names."""
    return {_joined(prefix, key): tensor for prefix, module in _modules(model) for key, tensor in _own_tensors(module)}


def stored_names(model: nn.Module) -> set[str]:
    """Returns names of what a state dict has: all but the buffers that are not persistent."""
    return {
        _joined(prefix, key)
        for prefix, module in _modules(model)
        for key, _ in _own_tensors(module)
        if key not in module._non_persistent_buffers_set
    }


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return model.named_modules(remove_duplicate=False)


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for key, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None:
            yield key, tensor


def _joined(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key


def _is_vacant(model: nn.Module, name: str) -> bool:
    owner, _, key = name.rpartition(".")
    modules = dict(model.named_modules())
    return owner in modules and key in modules[owner]._parameters and modules[owner]._parameters[key] is None


# --- shapes ---


def _shapes(tensors: Mapping[str, Tensor], names: set[str]) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items() if name in names}


def _ties(tensors: Mapping[str, Tensor], names: set[str]) -> dict[str, str]:
    first: dict[int, str] = {}
    placed = {name: first.setdefault(id(tensor), name) for name, tensor in tensors.items() if name in names}
    return {name: other for name, other in placed.items() if name != other}


def _difference(model: nn.Module, shapes: Mapping[str, Shape], ties: Mapping[str, str]) -> str | None:
    tensors = tensors_of(model)
    for name, tensor in tensors.items():
        if not tensor.is_meta:  # whose values are not asked for
            with_values(name, tensor)
    names = stored_names(model) | (tensors.keys() & shapes.keys())
    found = _difference_of(shapes, _shapes(tensors, names), _by)
    return found or _difference_of(ties, _ties(tensors, names), lambda first: f"tied to {first}")


def _difference_of(expected: Mapping[str, Any], actual: Mapping[str, Any], words: Any) -> str | None:
    names = dict.fromkeys((*expected, *actual))
    different = (name for name in names if expected.get(name) != actual.get(name))
    told = [
        f"{name} was {words(expected[name]) if name in expected else 'not there'} "
        f"and is {words(actual[name]) if name in actual else 'not there'}"
        for name in islice(different, 3)
    ]
    return ", ".join(told) or None


def _by(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "a number"


# --- attributes ---

_OF_TRAINING = {"training", "p", "inplace", "momentum"}
"""Attributes of torch's layers that change nothing in evaluation, and may be others in further training."""


def _computes_with(module: nn.Module) -> dict[str, Any]:
    """Returns the class of a module and, of torch's layers, the attributes that its outputs depend on."""
    kind = type(module)
    if not kind.__module__.startswith("torch.nn.modules."):
        return {"class": kind.__name__}
    plain = _plain_attributes(module).items()
    return {"class": kind.__name__} | {
        key: value for key, value in plain if not key.startswith("_") and key not in _OF_TRAINING
    }


def _changed(before: nn.Module, after: nn.Module) -> dict[str, tuple[Any, Any]]:
    old, new = _plain_attributes(before), _plain_attributes(after)
    return {key: (old[key], new[key]) for key in old if key in new and _text(old[key]) != _text(new[key])}


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    """Returns what JSON can hold, NumPy's numbers as Python's; of the mode, evaluation or training, nobody wants to be told by a file."""
    plain = {key: value.item() if isinstance(value, numpy.generic) else value for key, value in vars(module).items()}
    return {key: value for key, value in plain.items() if key != "training" and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def _encoded(value: Any) -> Any:
    """Tells tuples from lists, which JSON does not."""
    if isinstance(value, tuple):
        return {"tuple": [_encoded(part) for part in value]}
    return [_encoded(part) for part in value] if isinstance(value, list) else value


def _text(value: Any) -> str:
    """Makes values comparable: NaN is itself, and 1 is not True."""
    return json.dumps(_encoded(value))


def _decoded(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple(_decoded(part) for part in _of_type(list, value["tuple"]))
    return [_decoded(part) for part in value] if isinstance(value, list) else value


def _decoded_pairs(changed: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {key: (_decoded(before), _decoded(after)) for key, (before, after) in changed.items()}


def _of_type(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")
    return value


def _shape(sizes: Any) -> Shape:
    return tuple(_of_type(int, size) for size in _of_type(list, sizes))
