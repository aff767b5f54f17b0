"""Finds the tensors of a graph that operations in place on others change."""

from __future__ import annotations

from torch import fx, nn

from regkernels.structure import functions, layers, modules

_SAME_MEMORY = (nn.Identity, nn.Flatten, nn.modules.dropout._DropoutNd)


class Aliases:
    """Follows memory from node to node of a graph; what is not known to make new memory may be a view of all it is given."""

    def __init__(self, graph: fx.Graph, root: nn.Module) -> None:
        self._position = {node: index for index, node in enumerate(graph.nodes)}
        self._root = root
        self._groups: dict[fx.Node, set[fx.Node]] = {}

    def also_changed(self, node: fx.Node) -> list[fx.Node]:
        """Returns earlier nodes that ``node`` changes, as it works in place, and that are read later.

        To be asked for each node in the order of the graph.
        """
        in_place = self._in_place(node)
        group, changed = {node}, []
        if in_place or not self._new(node):
            for source in node.all_input_nodes[: 1 if in_place else None]:
                group |= self._groups[source]
        if in_place:
            now = self._position[node]
            changed = [n for n in group if n is not node and any(self._position[user] > now for user in n.users)]
        for member in group:
            self._groups[member] = group
        return changed

    def sharing(self, node: fx.Node) -> set[fx.Node]:
        """Returns ``node``, and nodes before the one asked for last that may lie in its memory."""
        return self._groups[node]

    def _in_place(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return bool(getattr(self._root.get_submodule(str(node.target)), "inplace", False))
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        if node.op not in ("call_function", "call_method") or name.startswith("__"):
            return False
        named = name.endswith("_") or name in ("iadd", "isub", "imul", "itruediv", "ipow", "setitem")
        asked = bool(node.kwargs.get("inplace")) or node.kwargs.get("out") is not None
        return named or asked or functions.asked_in_place(node)

    def _new(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            module = self._root.get_submodule(str(node.target))
            if isinstance(module, _SAME_MEMORY) or not modules.torch_forward(module):
                return False
            return isinstance(layers.kind_of(module), layers.Kind) or modules.rule_for(module) is not None
        return functions.makes_new_memory(node)
