"""Traces a model's forward into a graph, with what cannot be traced as one node."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor, fx, nn


class Trace:
    """Holds the ``graph`` of ``model.forward``, and the modules in it that were not looked into, with reasons.

    Args:
        model: not run, and nothing is written to it: torch.fx gets modules of its own, with the same tensors.
        examples: positional arguments; those that are no tensors are taken as they are. None: optional ones are at their defaults.
        is_leaf: modules to be one node, besides those of torch.nn.
        training: the mode to trace in; None leaves modules as they are.
    """

    def __init__(
        self,
        model: nn.Module,
        examples: tuple[Any, ...] | None,
        is_leaf: Callable[[nn.Module], bool],
        training: bool | None,
    ) -> None:
        self.root = _skeleton(model)
        if training is not None:
            self.root.train(training)
        tracer = _Tracer(is_leaf, examples)
        if tracer.is_leaf_module(self.root, ""):
            self.graph = _one_call(examples)
        else:
            self.graph = tracer.trace(self.root)
        self.closed = tracer.closed
        self.abandoned = tracer.abandoned
        for node in self.graph.nodes:
            constant = node.op == "get_attr" and node.target.startswith("_tensor_constant")
            if constant and getattr(self.root, node.target).requires_grad:
                raise fx.proxy.TraceError("it computes with parameters outside of the graph")

    def attribute(self, target: str) -> Any:
        """Looks up what a node reads that gets an attribute."""
        found: Any = self.root
        for part in target.split("."):
            found = getattr(found, part)
        return found

    def signature(self, cut: Collection[str] = ()) -> list[tuple[Any, ...]]:
        """Returns what is to be the same in the smaller model: operations, and the numbers among their arguments.

        The shapes of tensors that forward reads belong to it, except of those that were ``cut`` with their channels, and the values of those
        that it makes.
        """

        def plain(argument: Any) -> Any:
            return str(argument) if isinstance(argument, (fx.Node, Tensor)) else argument

        def arguments(node: fx.Node) -> str:
            return repr(fx.node.map_aggregate((node.args, node.kwargs), plain))

        constant = [node for node in self.graph.nodes if node.op == "get_attr" and node.target not in cut]
        shapes = [(node.target, tuple(self.attribute(node.target).shape), self._made(node)) for node in constant]
        return [(node.op, str(node.target), arguments(node)) for node in self.graph.nodes] + shapes

    def _made(self, node: fx.Node) -> str:
        """Returns the values of a tensor that forward makes of what is no input, such as a number of channels."""
        if not str(node.target).startswith("_tensor_constant"):
            return ""
        values = self.attribute(str(node.target)).detach().cpu().reshape(-1)
        return str(values.tolist()) if len(values) < 8 else f"{len(values)} values, {hash(tuple(values.tolist()))}"


def _skeleton(model: nn.Module) -> nn.Module:
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _one_call(examples: tuple[Any, ...] | None) -> fx.Graph:
    """Makes the graph of a model that is a layer itself, under the name of the root, which is empty."""
    graph = fx.Graph()
    inputs = tuple(graph.placeholder(f"x{index}") for index in range(1 if examples is None else len(examples)))
    graph.output(graph.create_node("call_module", "", inputs))
    return graph


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, is_leaf: Callable[[nn.Module], bool], examples: tuple[Any, ...] | None) -> None:
        super().__init__()
        self._is_leaf = is_leaf
        self._examples = examples
        self.closed: dict[str, str] = {}
        self.abandoned: dict[fx.Node, str] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self._is_leaf(m) or super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Makes a Proxy for each argument, as the base class does, but not for those that ``examples`` or defaults give.

        A Proxy is never None and never False: forward would be followed where it does not go.
        """
        positional: list[Any] = [self.root]
        keywords: dict[str, Any] = {}
        examples = list(self._examples or ())
        for name, parameter in list(inspect.signature(root_fn).parameters.items())[1:]:
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                continue
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                positional += [self._given(f"{name}_{index}", example) for index, example in enumerate(examples)]
                examples = []
            elif examples and parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
                positional.append(self._given(name, examples.pop(0)))
            elif parameter.default is inspect.Parameter.empty:
                keyword_only = parameter.kind is inspect.Parameter.KEYWORD_ONLY
                placeholder = self.create_proxy("placeholder", name, (), {})
                keywords |= {name: placeholder} if keyword_only else {}
                positional += [] if keyword_only else [placeholder]
        return functools.partial(root_fn, **keywords), positional

    def _given(self, name: str, example: Any) -> Any:
        return self.create_proxy("placeholder", name, (), {}) if isinstance(example, Tensor) else example

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        before, stack = set(self.graph.nodes), dict(self.module_stack)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:
            name = self.path_of_module(m)
            self.module_stack.clear()
            self.module_stack.update(stack)
            self.closed[name] = f"cannot be traced ({one_line(error)})"
            # Not erased: the tracer hands out the nodes of parameters again.
            self.abandoned |= dict.fromkeys(set(self.graph.nodes) - before, f"{name} {self.closed[name]}")
            return self.create_proxy("call_module", name, args, kwargs)


def one_line(error: Exception) -> str:
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
