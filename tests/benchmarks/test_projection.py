"""``python -m regkernels bench --projection``. That its formulas are true of torch's engine: tests/distributed/test_projection.py."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("rich")

from benchmarks import projection, sharding
from benchmarks.projection import FORMATS, Rate
from benchmarks.record import Record
from regkernels.__main__ import main
from tests import ROOT


def table(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict[tuple[str, ...], dict[str, str]]]:
    """By title, then by the first columns of a row, then by column."""
    assert main(["bench", "--projection", "--markdown", *arguments]) == 0
    found = {}
    for part in re.split(r"^\*", capsys.readouterr().out, flags=re.MULTILINE)[1:]:
        title, *lines = part.splitlines()
        headings, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line]
        of_text = 1 if headings[0] == "bytes per weight" else 2
        found[title.strip("*")] = {tuple(row[:of_text]): dict(zip(headings, row, strict=True)) for row in rows}
    return found


def test_bytes_are_those_of_the_page_on_low_precision() -> None:
    text = (ROOT / "docs" / "low_precision.md").read_text()
    lines = re.findall(r"^\| (.+?) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", text, re.MULTILINE)
    told = {name: tuple(map(int, numbers)) for name, *numbers in lines}
    ours = {
        label: (projection.bytes_held(form), projection.bytes_moved(form, clipped=False))
        for label, form in FORMATS.items()
    }
    assert ours["AdamW, float32"] == told["float32 weights and gradients"][:2]
    assert ours["AdamW, bf16, remainder"] == told['`"remainder"`'][:2]
    assert ours["AdamW, bf16, stochastic"] == told['`"nearest"`, `"stochastic"`'][:2]
    assert ours["AdamW, all in bf16"] == told['`"nearest"`, `"stochastic"`'][2:]
    assert ours["Lion, float32"] == (
        12,
        20,
    )  # weight, gradient, one state; the latter and the weight are read and written


@pytest.mark.parametrize("name", sharding.MODELS)
def test_models_have_the_size_that_they_are_named_after(name: str) -> None:
    count, unit = name.split()
    size = int(count) * {"B": 1e9, "T": 1e12}[unit]
    assert sharding.MODELS[name].elements == pytest.approx(size, rel=0.025)


def test_given_bandwidth(capsys: pytest.CaptureFixture[str]) -> None:
    found = table(capsys, "--bandwidth", "2000")
    (title,) = (title for title in found if " in ms, " in title)
    assert "2000 GB/s, as given; not measured here" in title
    own = sharding.MODELS["1 B"].elements / 8  # nothing is uneven there
    row = found[title]["1 B", "FSDP 8"]
    assert float(row["AdamW, float32"]) == pytest.approx(own * 28 / 2000e9 * 1e3, rel=0.01)
    assert float(row["AdamW, all in bf16"]) == pytest.approx(own * 14 / 2000e9 * 1e3, rel=0.01)


def test_measured_rates(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    record = Record.load(projection.RECORD)
    found = table(capsys)
    (title,) = (title for title in found if " in ms, " in title)
    assert record.machine in title and record.commit in title
    (row,) = (
        row
        for row in record.rows
        if row.peer == "regkernels" and row.case.startswith("adamw, float32: ") and row.suite == "low_precision"
    )
    seconds_per_weight = row.ms / 1e3 / 2**26  # of that case
    own = sharding.MODELS["10 B"].elements / 64
    cell = found[title]["10 B", "FSDP 64"]["AdamW, float32"]
    assert float(cell) == pytest.approx(own * seconds_per_weight * 1e3, rel=0.01)
    path = tmp_path / "record.json"
    replace(record, rows=[row]).save(path)
    few = Rate.measured(path)
    assert [few.of(form) is None for form in FORMATS.values()] == [False, True, True, True, True]
    assert projection.grids(few)[2].rows[0][4:] == ("", "", "")  # nothing is made up


def test_in_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--projection"]) == 0
    printed = capsys.readouterr().out
    assert "AMD EPYC, 2 threads" in printed and "FSDP 2048 x TP 8" in printed and "16,384" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--bandwidth 3", "--bandwidth belongs to --projection"),
        ("--markdown", "--markdown belongs to --projection"),
        ("--projection --bandwidth 0", "must be greater than 0 and finite, got 0"),
        ("--projection --bandwidth nan", "must be greater than 0 and finite, got nan"),
        ("--projection --bandwidth fast", "must be a number, got 'fast'"),
        ("--projection --list", "not allowed with argument"),
    ],
)
def test_bad_arguments(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(["bench", *arguments.split()])
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    assert status == 2 and message in capsys.readouterr().err
