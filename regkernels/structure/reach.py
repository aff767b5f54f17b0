"""Finds what a forward that cannot be traced may use of the insides of its parts: what it names."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Collection
from types import CodeType, FunctionType

from torch import nn

from regkernels.structure import layers, modules

EVERYTHING = frozenset({"*"})
"""Stands for all names, where forward asks for what it does not name."""


def named_by(functions: Collection[FunctionType]) -> set[str]:
    """Returns names of attributes that functions ask of anything but ``self``."""
    return {name for function in functions for part in _codes(function.__code__) for name in _named(part)}


def forward_of(module: nn.Module) -> list[FunctionType]:
    """Returns forward, and the methods and functions of its file that it calls; of a list of modules there are none."""
    cls, found = type(module), list[FunctionType]()
    pending = [] if cls.forward is nn.Module.forward else [inspect.unwrap(cls.forward)]
    while pending:
        function = pending.pop()
        if not isinstance(function, FunctionType) or function in found:
            continue
        found.append(function)
        for name in {name for part in _codes(function.__code__) for name in part.co_names}:
            for called in (inspect.getattr_static(cls, name, None), function.__globals__.get(name)):
                if isinstance(called, FunctionType) and inspect.unwrap(called).__module__ == cls.__module__:
                    pending.append(inspect.unwrap(called))
    return found


def _codes(code: CodeType) -> list[CodeType]:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return [code, *(deeper for part in inner for deeper in _codes(part))]


def _named(code: CodeType) -> set[str]:
    """Returns names of attributes, and strings, which ``getattr`` may be given."""
    names = {constant for constant in code.co_consts if isinstance(constant, str)}
    before = None
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            of_self = before is not None and before.opname.startswith("LOAD_FAST") and before.argval == "self"
            if not of_self:
                names.add(str(instruction.argval))
        before = instruction
    return names


def reached(part: nn.Module, names: Collection[str]) -> set[int]:
    """Returns the identities of the modules inside of ``part`` that are named, or one of their tensors that forward reads itself is."""
    if names is EVERYTHING:
        return {id(module) for module in part.modules()}
    found: set[int] = set()
    for name, module in part.named_modules():
        unknown = layers.kind_of(module) is None and modules.rule_for(module) is None
        read = unknown and any(key in names for key, _ in module.named_parameters(recurse=False))
        if read or (name and any(step in names for step in name.split("."))):
            found.add(id(module))
    return found
