"""Finds the children that a forward that cannot be traced does anything with but call them: it may take these apart."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from types import FunctionType

from torch import nn

_OF_ALL = {
    "_buffers",
    "_modules",
    "_parameters",
    "__dict__",
    "apply",
    "buffers",
    "children",
    "get_buffer",
    "get_parameter",
    "get_submodule",
    "modules",
    "named_buffers",
    "named_children",
    "named_modules",
    "named_parameters",
    "parameters",
    "state_dict",
}
"""Attributes of modules that lead to what is inside without naming it."""

_PASSING_ON = {"enumerate", "reversed", "zip"}
_LISTS = (nn.ModuleList, nn.ModuleDict)


def children_taken_apart(module: nn.Module, functions: list[FunctionType]) -> set[str]:
    """Returns the names of children that ``functions``, forward and what it calls, index, walk over or hand on.

    Elements of a list of modules may be picked and walked over, if these are only called. All children, where a source cannot be read or
    asks for everything inside.
    """
    children = dict(module.named_children())
    found: set[str] = set()
    for function in functions:
        tree = _parsed(function)
        if tree is None:
            return set(children)
        parents = {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
                if node.attr in _OF_ALL:
                    return set(children)
                if node.attr in children and not _is_called(
                    node, isinstance(children[node.attr], _LISTS), parents, tree
                ):
                    found.add(node.attr)
            elif _is_name(node, "self") and not _is_harmless(parents[node], children):
                return set(children)
    return found


@cache
def _parsed(function: FunctionType) -> ast.AST | None:
    """Reads the source of a function, which layers of a class share; None where there is none."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None


def _is_harmless(parent: ast.AST, children: Mapping[str, nn.Module]) -> bool:
    """Tells whether a module's ``self`` is only asked for an attribute, or what it is and has."""
    if isinstance(parent, ast.Call) and isinstance(parent.func, ast.Name):
        name = parent.args[1] if len(parent.args) > 1 else None
        of_a_child = not isinstance(name, ast.Constant) or name.value in children
        return parent.func.id in ("hasattr", "isinstance", "type") or (parent.func.id == "getattr" and not of_a_child)
    return isinstance(parent, (ast.Attribute, ast.FormattedValue))


def _is_called(node: ast.expr, is_list: bool, parents: dict[ast.AST, ast.AST], tree: ast.AST) -> bool:
    """Tells whether a module is called, asked for an attribute by its name or, if it is a list, its elements are."""
    parent = parents[node]
    if isinstance(parent, ast.Call) and parent.func is node:
        return True
    if isinstance(parent, ast.Attribute):
        return parent.attr not in _OF_ALL
    if isinstance(parent, ast.Compare):  # whether it is None
        return all(isinstance(test, (ast.Is, ast.IsNot)) for test in parent.ops)
    if not is_list:
        return False
    if isinstance(parent, ast.Subscript) and parent.value is node:
        return _is_called(parent, isinstance(parent.slice, ast.Slice), parents, tree)
    if isinstance(parent, ast.Call) and isinstance(parent.func, ast.Name) and parent.func.id in _PASSING_ON:
        return _is_called(parent, True, parents, tree)
    if isinstance(parent, (ast.For, ast.comprehension)) and parent.iter is node:
        names = {target.id for target in ast.walk(parent.target) if isinstance(target, ast.Name)}
        return all(_is_called(use, False, parents, tree) for use in _uses(tree, names) if use in parents)
    return False


def _uses(tree: ast.AST, names: set[str]) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in names and isinstance(node.ctx, ast.Load):
            yield node


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name
