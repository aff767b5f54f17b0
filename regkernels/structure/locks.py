"""Finds the modules that have to be left as they are, whatever the graph says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import nn

from regkernels.structure import layers, modules
from regkernels.structure.held import held_elsewhere
from regkernels.structure.tracing import Trace

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def has_hooks(module: nn.Module) -> bool:
    return any(getattr(module, kind, None) for kind in _HOOKS)


def why_locked(
    whole: nn.Module,
    name_of_part: str,
    traces: Iterable[Trace],
    shared: Mapping[tuple[str, str], str],
    elsewhere: Collection[int] = (),
) -> dict[str, str]:
    """Gives reasons by name of the module, as ends of sentences about it.

    Names are those in the part of ``whole`` that the traces are of; ``shared`` is `sharing` of the model that ``whole`` was copied from,
    as copies of buffers share nothing with parameters; ``elsewhere`` has identities of modules that other parts use.
    """
    locked: dict[str, str] = {}
    held = held_elsewhere(whole)
    part = whole.get_submodule(name_of_part)
    by_name = dict(part.named_modules())
    for name, module in by_name.items():
        reason = _reason(".".join(filter(None, (name_of_part, name))), module, shared)
        if id(module) in held:
            reason = f"is held in {held[id(module)]}, too, where torch does not know of it; register it there, as nn.ModuleList does"
        if id(module) in elsewhere:
            reason = "is used from outside of the part that is followed, too"
        if reason is not None:
            locked[name] = reason
    for trace in traces:
        calls = Counter(str(node.target) for node in trace.graph.nodes if node.op == "call_module")
        for name, times in calls.items():
            if times > 1 and any(True for _ in by_name[name].parameters()):
                locked.setdefault(name, "is used more than once")
        for node in trace.graph.nodes:
            if node.op == "get_attr" and "." in str(node.target):
                owner, _, what = str(node.target).rpartition(".")
                if layers.kind_of(by_name[owner]) is None and modules.rule_for(by_name[owner]) is None:
                    continue
                locked.setdefault(owner, f"has its {what} read by forward itself")
        for closed in calls:
            inside = {id(module) for module in by_name[closed].modules()} - {id(by_name[closed])}
            for name in calls:
                if id(by_name[name]) in inside:
                    locked.setdefault(name, f"is used by {closed}, too, which is not looked into")
    return locked


def _reason(name: str, module: nn.Module, shared: Mapping[tuple[str, str], str]) -> str | None:
    if has_hooks(module):
        return "has hooks, which may look at all channels"
    if hasattr(module, "parametrizations"):
        return "is parametrized; torch.nn.utils.parametrize.remove_parametrizations makes it plain"
    for key, param in module.named_parameters(recurse=False):
        if (name, key) in shared:
            return shared[name, key]
        if type(param) is not nn.Parameter:
            return f"has a parameter of type {type(param).__name__}"
        if not (param.is_floating_point() or param.is_complex()) or param.layout != torch.strided:
            return f"has a parameter of {param.dtype}, {param.layout}"
    return None


def named_twice(model: nn.Module) -> set[int]:
    """Returns the identities of modules that have several names."""
    times = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    return {module for module, count in times.items() if count > 1}


def sharing(model: nn.Module) -> dict[tuple[str, str], str]:
    """Finds, by module and name, the parameters that several modules have, and those that lie in one storage with others or buffers."""
    owners: dict[object, list[tuple[str, str]]] = {}
    parameters = set[object]()
    for name, module in model.named_modules():
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and tensor.numel() and tensor.layout == torch.strided:
                plain = type(tensor) in (nn.Parameter, torch.Tensor)
                place = (tensor.device, tensor.untyped_storage().data_ptr()) if plain else id(tensor)
                owners.setdefault(place, []).append((name, key))
                if key in module._parameters:
                    parameters.add(place)
    shared = {}
    for together in (owners[place] for place in owners if place in parameters):
        for owner in together if len(together) > 1 else ():
            others = ", ".join(".".join(filter(None, other)) for other in together if other != owner)
            shared[owner] = f"shares a parameter with {others}"
    return shared
