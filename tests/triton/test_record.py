"""A row for each Triton and target: what one run notes does not change what others did."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
import torch
import triton

from regkernels.backends.triton.architectures import ARCHITECTURES
from tests.triton import record, versions

HEAD = "| Triton | torch | target | compiled | run |\n| --- | --- | --- | --- | --- |\n"
OLD = "| 3.1.0 | 2.5.0 | sm_90 | 12 (2024-11-05) | 12 (2024-11-06) |\n"


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(triton, "__version__", "3.4.0")
    monkeypatch.setattr(torch, "__version__", "2.8.0+cpu")
    path = tmp_path / "page.md"
    path.write_text(f"Before.\n\n{record.BEGIN}{HEAD}{OLD}{record.END}\n\nAfter.\n")
    return path


def test_rows(page: Path) -> None:
    record.write("sm_80", "run", 7, page=page)
    record.write("sm_80", "compiled", 9, page=page)
    record.write("sm_80", "run", 8, wrong=2, unseen=0, page=page)
    record.write("gfx942", "compiled", 5, page=page)
    today = date.today()
    assert page.read_text() == (
        f"Before.\n\n{record.BEGIN}{HEAD}{OLD}"
        f"| 3.4.0 | 2.8.0 | gfx942 | 5 ({today}) |  |\n"
        f"| 3.4.0 | 2.8.0 | sm_80 | 9 ({today}) | 8, 2 wrong ({today}) |\n"
        f"{record.END}\n\nAfter.\n"
    )


def test_what_is_recorded_is_of_known_versions_and_right() -> None:
    table = record.PAGE.read_text().partition(record.BEGIN)[2].partition(record.END)[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert {version.rpartition(".")[0] for version, *_ in rows} == versions.TORCH.keys()
    for version, with_torch, target, *done in rows:
        assert with_torch.startswith(versions.TORCH[version.rpartition(".")[0]] + ".")
        assert target in ARCHITECTURES and any(done) and "wrong" not in "".join(done)
