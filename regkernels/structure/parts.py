"""Finds the parts of a model that torch.fx can trace: the whole, or what is left inside of what it cannot."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from regkernels.structure import blocks, handled, layers, locks, modules, reach
from regkernels.structure.tracing import Trace, one_line


@dataclasses.dataclass(frozen=True)
class Part:
    """Holds a module that is followed by itself, with a trace of it per mode."""

    name: str
    module: nn.Module
    traces: dict[str, Trace]
    around: str
    """Why what is around it was not followed, as a sentence; empty for the whole model."""
    reached: frozenset[int]
    """Identities of modules in it that forward of what is around it may use by itself."""

    def ends(self) -> tuple[str, str]:
        """Says what comes in and what goes out."""
        if not self.around:
            return "the model's input", "the model's output"
        return tuple(f"the {end} of {self.name}, which was followed by itself: {self.around}" for end in _ENDS)  # type: ignore[return-value]

    def full(self, name: str) -> str:
        return ".".join(filter(None, (self.name, name)))

    def used(self) -> set[int]:
        """Returns the identities of the modules that its graphs call, and of those whose tensors they read."""
        names: set[str] = set()
        for trace in self.traces.values():
            for node in trace.graph.nodes:
                if node.op in ("call_module", "get_attr"):
                    target = str(node.target)
                    names.add(target if node.op == "call_module" else target.rpartition(".")[0])
        return {id(self.module.get_submodule(name)) for name in names}


_ENDS = ("input", "output")


def find(
    model: nn.Module, examples: tuple[Any, ...] | None, modes: Sequence[str], left: Mapping[str, str]
) -> list[Part]:
    """Returns the whole model, if it can be traced, and the largest parts inside of what cannot.

    ``left`` gives reasons for parts that are not to be taken, by name.
    """
    return list(_within("", model, "", frozenset(), examples, modes, left))


def _within(
    name: str,
    module: nn.Module,
    around: str,
    names: frozenset[str],
    examples: tuple[Any, ...] | None,
    modes: Sequence[str],
    left: Mapping[str, str],
) -> Iterator[Part]:
    if name and not any(True for _ in module.parameters()):
        return
    reason = left.get(name) or (_why_not(module) if name else None)
    traces: dict[str, Trace] = {}
    if reason is None:
        try:
            traces = {mode: trace(module, examples, mode) for mode in modes}
        except Exception as error:  # of whatever sort: forward is run with what is no tensor
            reason = f"cannot be traced by torch.fx ({one_line(error)})"
    inside = {"": reason} if reason else {key: why for one in traces.values() for key, why in one.closed.items()}
    if reason is None:
        yield Part(name, module, traces, around, frozenset(reach.reached(module, names)))
    for closed, why in inside.items():
        full = ".".join(filter(None, (name, closed)))
        said = f"{full or type(module).__name__} {why}"
        within = module.get_submodule(closed)
        functions = reach.forward_of(within)
        outside, apart = names | reach.named_by(functions), handled.children_taken_apart(within, functions)
        for child, found in within.named_children():
            seen = reach.EVERYTHING if names is reach.EVERYTHING or child in apart else outside
            yield from _within(".".join(filter(None, (full, child))), found, said, seen, None, modes, left)


def _why_not(module: nn.Module) -> str | None:
    """Says why a part cannot be traced without its surroundings: these may give arguments that its trace would not have."""
    if type(module).forward is nn.Module.forward:
        return "has no forward"
    if is_leaf(module) or type(module).__module__.startswith("torch.nn.modules."):
        return None
    arguments = list(inspect.signature(module.forward).parameters.values())
    optional = [a.name for a in arguments if a.default is not a.empty or a.kind in (a.VAR_POSITIONAL, a.VAR_KEYWORD)]
    return f"takes optional arguments ({', '.join(optional)})" if optional else None


def is_leaf(module: nn.Module) -> bool:
    """Adds to torch.fx's leaves what must not run on proxies, and what is a layer that is known by another name."""
    known = modules.rule_for(module) is not None or layers.kind_of(module) is not None
    if locks.has_hooks(module) or "forward" in vars(module):
        return True
    return blocks.is_known(module) or (known and modules.torch_forward(module))


def trace(module: nn.Module, examples: tuple[Any, ...] | None, mode: str) -> Trace:
    return Trace(module, examples, is_leaf, None if mode == "as it is" else mode == "train")
