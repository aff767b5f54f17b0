"""Finds modules that others hold in attributes that torch does not know, such as a list: they may be called from there."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from types import FunctionType, MethodType
from typing import Any

from torch import nn

_KNOWN = ("_parameters", "_buffers", "_modules")
_DEPTH = 5


def held_elsewhere(model: nn.Module) -> dict[int, str]:
    """Returns, by identity, modules of ``model`` that another one holds, or of which it holds a parameter, unregistered, and by what name.

    Looked into are lists, tuples, sets and dictionaries, objects that are no modules, partial calls, methods, and what functions close
    over.
    """
    own = {id(module) for module in model.modules()}
    owners = {
        id(param): id(module)
        for module in model.modules()
        for param in module._parameters.values()
        if param is not None
    }
    found: dict[int, str] = {}
    for name, module in model.named_modules():
        seen: set[int] = set()
        for key, value in vars(module).items():
            if key in _KNOWN:
                continue
            for each in _inside(value, _DEPTH, seen):
                if owners.get(id(each), id(module)) != id(module):
                    found.setdefault(owners[id(each)], ".".join(filter(None, (name, key))))
                if isinstance(each, nn.Module) and each is not module:
                    for inner in each.modules():
                        if id(inner) in own:
                            found.setdefault(id(inner), ".".join(filter(None, (name, key))))
    return found


def _inside(value: Any, depth: int, seen: set[int]) -> Iterator[Any]:
    """Yields modules and parameters in a value."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, (nn.Module, nn.Parameter)):
        yield value
    elif depth:
        for part in _parts(value):
            yield from _inside(part, depth - 1, seen)


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from list(value.values())
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from list(value)
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, FunctionType):
        yield from (cell.cell_contents for cell in value.__closure__ or () if _is_set(cell))
    elif not isinstance(value, type) and not type(value).__module__.startswith(("torch.", "builtins")):
        yield from list(getattr(value, "__dict__", {}).values())


def _is_set(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # of a name that has no value yet
        return False
