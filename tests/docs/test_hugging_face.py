"""examples/hugging_face.py: the page shows what the record says."""

from __future__ import annotations

import importlib
import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import pytest

from tests import ROOT

pytest.importorskip("transformers")

RECORD = ROOT / "examples" / "results" / "hugging_face.json"


@pytest.fixture(scope="module")
def program() -> Iterator[Any]:
    """The module, of which nothing stays for other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples")
        yield importlib.import_module("hugging_face")
        del sys.modules["hugging_face"]


@pytest.fixture(scope="module")
def record(program: Any) -> Namespace:
    found = json.loads(RECORD.read_text())
    return Namespace(epochs=found["epochs"], points=[program.Point(**point) for point in found["points"]])


def test_the_page_shows_the_record(program: Any, record: Namespace) -> None:
    page = (ROOT / "docs" / "example_huggingface.md").read_text()
    assert "\n".join(program.table(record.points)) in page
    assert f"{record.epochs} epochs" in page
    largest = max(point.difference for point in record.points)
    assert f"at most {largest:.0e} of the largest" in page


def test_compaction_changed_no_accuracy(program: Any, record: Namespace) -> None:
    assert all(point.accuracy == point.compacted_accuracy for point in record.points)
    assert {point.strength for point in record.points} == set(program.STRENGTHS)


@pytest.mark.parametrize("name", ["GPT-2", "Llama", "BERT"])
def test_the_groups_are_those_that_compaction_takes_out(program: Any, name: str) -> None:
    """Every layer has one weight for its units and one for its heads, of the sizes that the page gives."""
    model = program.make(name)
    units, heads, others = program.param_groups(name, model, 0.5)
    assert [param.shape[units["group_dim"]] for param in units["params"]] == [program.UNITS] * program.LAYERS
    assert [param.shape[heads["group_dim"]] for param in heads["params"]] == [program.WIDTH] * program.LAYERS
    assert units["group_l1"] == heads["group_l1"] == 0.5 and "group_l1" not in others
