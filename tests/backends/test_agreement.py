"""What C++ and Python know by name: an extension that was built for other names is refused, and the reason names them."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from regkernels.backends import extension
from tests.backends.test_choice import python
from tests.support import cases

compiled = pytest.mark.skipif(extension.C is None, reason="the extension is not built")

LISTS = [name for name, names in extension.agreement().items() if isinstance(names, list)]

IMPORT = """
import json, sys, types
sys.modules["regkernels._C"] = types.SimpleNamespace(layout=lambda: json.loads(sys.argv[1]))
import regkernels.backends.extension
print(regkernels.backends.extension.C, regkernels.backends.extension.missing_because)
"""


def layout() -> dict[str, Any]:
    return copy.deepcopy(extension.agreement())


@compiled
def test_the_extension_says_what_python_expects() -> None:
    assert extension.C.layout() == extension.agreement()
    assert extension.CHUNK == cases.CHUNK


@pytest.mark.parametrize("name", LISTS)
def test_a_list_in_another_order(name: str) -> None:
    other, ours = layout(), extension.agreement()[name]
    assert isinstance(ours, list)
    other[name][1:3] = other[name][2:0:-1]
    (reason,) = extension.disagreements(other)
    assert reason == f"{name}: csrc has '{ours[2]}' at place 1, counted from 0, Python has '{ours[1]}'"


@pytest.mark.parametrize("name", LISTS)
def test_an_entry_that_one_side_lacks(name: str) -> None:
    more, fewer = layout(), layout()
    last = fewer[name].pop()
    more[name].append("novel")
    place = len(more[name]) - 1
    assert extension.disagreements(more) == [
        f"{name}: csrc has 'novel' at place {place}, counted from 0, Python has nothing"
    ]
    reason = f"{name}: csrc has nothing at place {place - 1}, counted from 0, Python has '{last}'"
    assert extension.disagreements(fewer) == [reason]


@pytest.mark.parametrize("name", ["interface", "chunk"])
def test_another_number(name: str) -> None:
    other = layout()
    other[name] += 1
    assert extension.disagreements(other) == [f"{name}: csrc has {other[name]}, Python has {other[name] - 1}"]


def test_lists_that_are_not_there() -> None:
    other = layout()
    del other["rules"], other["interface"]
    assert extension.disagreements(other) == [f"{name}: csrc says nothing of it" for name in ("interface", "rules")]


def test_every_disagreement_is_in_the_warning() -> None:
    """With what to do; the extension is then not used."""
    other = layout()
    other["rules"].remove("adam")
    other["hyper"].insert(3, "novel")
    ran = python(IMPORT, json.dumps(other))
    assert ran.returncode == 0, ran.stderr
    for text in (ran.stderr, ran.stdout):
        assert "rules: csrc has 'amsgrad' at place 2, counted from 0, Python has 'adam'" in text
        assert "hyper: csrc has 'novel' at place 3, counted from 0, Python has 'subgradient'" in text
    assert ran.stdout.startswith("None ") and ran.stderr.count("RuntimeWarning") == 1
    assert "run `pip install --force-reinstall --no-deps regkernels`, in a checkout `pip install -e .`" in ran.stderr
