"""What is kept of predictions says that it is one, and the page shows the record."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from benchmarks.compare import CannotCompare, load
from tests.triton import compiled, predicted
from tests.triton.model.chips import CHIPS
from tests.triton.predicted import BEGIN, CASES, END, PAGE, RECORD, markdown

ROWS = json.loads(RECORD.read_text())["rows"]


def test_the_record_is_marked_and_complete() -> None:
    assert json.loads(RECORD.read_text())["predicted"] is True
    architectures = {row["architecture"] for row in ROWS}
    assert {"sm_90"} <= architectures <= CHIPS.keys()
    assert {(row["kernel"], row["architecture"]) for row in ROWS} == {
        (case.name, architecture) for case in CASES for architecture in architectures
    }
    assert all(0 < row["percent_of_copy"] <= 100 and row["spilled"] == 0 for row in ROWS)


def test_nobody_takes_it_for_a_measurement() -> None:
    with pytest.raises(CannotCompare, match="is no record"):
        load(RECORD)


def test_the_page_shows_the_record() -> None:
    text = PAGE.read_text()
    assert text.partition(BEGIN)[2].partition(END)[0] == markdown(ROWS)
    assert "**Nothing on this page is measured.**" in text


@pytest.mark.parametrize("program", [predicted.main, compiled.main])
def test_unknown_targets(program: Callable[[list[str]], None], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program(["H200"])
    assert "unknown target 'H200': name some of sm_80, " in capsys.readouterr().err
