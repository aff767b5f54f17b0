"""What README.md says is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import regkernels
from benchmarks import report
from tests import ROOT

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", report.PARTS, ids=lambda path: path.name)
def test_speed_tables_are_those_of_the_records(path: Path) -> None:
    text = path.read_text()
    assert report.rewritten(text, report.PARTS[path]) == text, "run `python -m regkernels bench --readme`"


def test_a_stranger_reads_it_to_the_end() -> None:
    assert len(README.split()) < 1200


def test_quick_start_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    """And what it prints is what the line below it says: the loss falls, zeros rise from 8 % to more than 90 %, whose
    digits after that depend on how a processor multiplies matrices."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    exec(code, {})
    losses, zeros = zip(*re.findall(r"loss ([\d.]+), +([\d.]+)%", capsys.readouterr().out), strict=True)
    assert [float(share) for share in zeros] == sorted(map(float, zeros))
    first, last = re.search(r"zeros rise from (\d+) % to more than (\d+) %", README).groups()
    assert abs(float(zeros[0]) - int(first)) < 1 and float(zeros[-1]) > int(last)
    assert float(losses[-1]) < 0.02 < float(losses[0])


def test_the_home_page_has_the_same_quick_start() -> None:
    (code,) = re.findall(r"```python\n.*?```", README, re.S)
    assert code in (ROOT / "docs" / "index.md").read_text()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`?rk\.([a-z0-9_]+)", README))))
def test_names_exist(name: str) -> None:
    assert hasattr(regkernels, name)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^)make ([a-z]+)", README, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
