"""Follows channels and constants from layer to layer, in one pass over a model's graph."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from regkernels.structure import blocks, functions, layers, modules, weighted
from regkernels.structure.aliases import Aliases
from regkernels.structure.facts import Facts
from regkernels.structure.layouts import Fixed, Held, Layout, Number, Share, Value, layouts_in
from regkernels.structure.tracing import Trace


def follow(trace: Trace, facts: Facts) -> Facts:
    """Goes through the graph of ``trace`` and fills ``facts``, which it returns.

    The trace is of the model that the facts are about, or of one that differs from it only in sizes.
    """
    walk = _Walk(trace, facts)
    for node in trace.graph.nodes:
        walk.visit(node)
    return facts


class _Walk:
    """Asks for each node of a graph the rule that knows it."""

    def __init__(self, trace: Trace, facts: Facts) -> None:
        self._trace = trace
        self._facts = facts
        self._aliases = Aliases(trace.graph, trace.root)

    def visit(self, node: fx.Node) -> None:
        for changed in self._aliases.also_changed(node):
            self._forget(changed, node)
        self._facts.values[node] = self._result(node)

    def _forget(self, node: fx.Node, by: fx.Node) -> None:
        value = self._facts.values.get(node)
        if isinstance(value, Layout):
            self._facts.stop(value, f"{by.name} changes them in place while something else reads them")
            self._facts.values[node] = value.nowhere_constant()

    def _result(self, node: fx.Node) -> Value:
        if node.op == "placeholder":
            return Fixed(self._facts.ends[0])
        if node.op == "get_attr":
            return self._attribute(node)
        if node in self._trace.abandoned:
            return self._unknown(node, self._trace.abandoned[node])
        if node.op == "output":
            return self._unknown(node, self._facts.ends[1])
        if node.op == "call_module":
            return self._module(node)
        result = functions.call(self._facts, node)
        what = getattr(node.target, "__name__", node.target)
        if result is not None:
            return result
        counted = any(isinstance(self._facts.values[source], Share) for source in node.all_input_nodes)
        return self._unknown(node, "forward asks for their number" if counted else f"{node.name} ({what}) may mix them")

    def _unknown(self, node: fx.Node, reason: str) -> Fixed:
        values = self._facts.values
        for source in node.all_input_nodes:
            for n in self._aliases.sharing(source):
                value = values.get(n)
                if isinstance(value, Layout):  # which may be changed in place by what is not known
                    values[n] = value.nowhere_constant()
        return self._facts.stop_all((x for n in node.all_input_nodes for x in layouts_in(values[n])), reason)

    def _attribute(self, node: fx.Node) -> Value:
        attribute = self._trace.attribute(str(node.target))
        if isinstance(attribute, Tensor) and attribute.dim() == 0:
            return Number()
        reason = f"{node.target}, a tensor of the model"
        if not isinstance(attribute, Tensor):
            return Fixed(reason)
        # The trace may be of the model as it was before channels went.
        owner, _, name = str(node.target).rpartition(".")
        now = getattr(self._facts.model.get_submodule(owner), name, attribute)
        return Held(reason, str(node.target), now, alone=len(node.users) == 1)

    def _module(self, node: fx.Node) -> Value:
        facts, name = self._facts, str(node.target)
        module: Any = facts.model.get_submodule(name)
        kind = layers.kind_of(module)
        locked = self._why_locked(node, name, kind)
        if locked is not None:
            return self._closed(node, name, f"{name or 'it'} {locked}")
        x = facts.value(node.args[0])
        if isinstance(kind, layers.Kind):
            return (weighted.depthwise if kind.depthwise else weighted.layer)(facts, name, module, kind, x)
        rule = modules.rule_for(module)
        if rule is None:
            return self._closed(node, name, f"{name} ({type(module).__name__}) may mix them")
        if isinstance(x, Layout):
            return rule(facts, name, module, x)
        facts.fixed_inputs[name] = reason = getattr(x, "reason", "it is no tensor")
        return Fixed(reason)

    def _why_locked(self, node: fx.Node, name: str, kind: layers.Kind | str | None) -> str | None:
        reason = self._trace.closed.get(name) or self._facts.locked(name)
        if reason is not None:
            return reason
        module = self._facts.model.get_submodule(name)
        if not modules.torch_forward(module):
            known = "which adds to its input" if blocks.is_known(module) else "which is not known"
            return f"is a {type(module).__name__}, {known}"
        if len(node.args) != 1 or node.kwargs:
            return "is called with more than one argument"
        return kind if isinstance(kind, str) else None

    def _closed(self, node: fx.Node, name: str, reason: str) -> Fixed:
        facts = self._facts
        facts.fixed_inputs[name] = facts.fixed_outputs[name] = reason
        module = facts.model.get_submodule(name)
        if facts.locked(name) is None and (modules.torch_forward(module) or blocks.is_known(module)):
            blocks.follow(facts, name, module)
        return self._unknown(node, reason)
