"""What README.md says is so."""

from __future__ import annotations

import re

import pytest
import torch

import regkernels
from benchmarks import report
from tests import ROOT

README = (ROOT / "README.md").read_text()


def test_speed_tables_are_those_of_the_records() -> None:
    assert report.rewritten(README) == README, "run `python -m regkernels bench --readme`"


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_quick_start_runs() -> None:
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "import regkernels" in block)
    assert len([line for line in code.splitlines() if line.strip()]) < 15
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    batch = (torch.randn(5, 4), torch.randint(2, (5,)))
    exec(code, {"model": model, "criterion": torch.nn.functional.cross_entropy, "loader": [batch] * 3})


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`?rk\.([a-z0-9_]+)", README))))
def test_names_exist(name: str) -> None:
    assert hasattr(regkernels, name)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z]+)", README):
        assert re.search(rf"^{target}:", makefile, re.M), target
