"""The page on compaction lists every reason that compact may give for what it keeps."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import regkernels.structure
from tests import ROOT

FOLDER = Path(regkernels.structure.__file__).parent
TABLE = (ROOT / "docs" / "compact.md").read_text().partition("## What stays, and why")[2]
LISTED = {phrase for row in re.findall(r"^\| (\*.*?) \|", TABLE, re.M) for phrase in re.findall(r"\*([^*]+)\*", row)}

GIVEN_TO = {"stop": 1, "Objection": 0}
"""Calls that are given a reason, and in which place."""
RETURNED_BY = {"_reason", "kind_of", "_why_not", "_why_not_known", "_outside", "_why_locked", "ends", "why_locked"}


def texts(node: ast.AST) -> Iterator[str]:
    """Yields what strings in a node say, with a dot for what stands in braces."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(part.value if isinstance(part, ast.Constant) else "." for part in node.values)
    elif isinstance(node, (ast.Tuple, ast.IfExp, ast.BoolOp)):
        for child in ast.iter_child_nodes(node):
            yield from texts(child)


def reasons() -> Iterator[str]:
    for path in sorted(FOLDER.glob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                place = GIVEN_TO.get(name)
                if place is not None and len(node.args) > place:
                    yield from texts(node.args[place])
            if isinstance(node, ast.FunctionDef) and node.name in RETURNED_BY:
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Return) and inner.value is not None:
                        yield from texts(inner.value)
                    if isinstance(inner, ast.Assign) and getattr(inner.targets[0], "id", "") == "reason":
                        yield from texts(inner.value)
                    if isinstance(inner, ast.Call) and getattr(inner.func, "attr", "") == "setdefault":
                        yield from texts(inner.args[-1])


FOUND = sorted({reason for reason in reasons() if len(reason.strip(".")) > 3})


def test_they_are_found() -> None:
    assert len(FOUND) > 30
    for part in (
        "mixes them",
        "has hooks",
        "the last one of a layer",
        "pads with zeros",
        "has groups=",
        "is used more than once",
    ):
        assert any(part in reason for reason in FOUND), part


@pytest.mark.parametrize("reason", FOUND)
def test_the_page_lists_it(reason: str) -> None:
    assert any(phrase in reason for phrase in LISTED), f"no phrase in the table of docs/compact.md is in {reason!r}"
