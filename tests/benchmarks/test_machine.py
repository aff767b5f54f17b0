"""What the benchmark finds out before it measures: packages, memory and caches."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import regkernels
from benchmarks import room
from regkernels.__main__ import main


def test_without_a_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(regkernels, "__file__", str(tmp_path / "regkernels" / "__init__.py"))
    assert main(["bench"]) == 1
    assert "git clone" in capsys.readouterr().err


def test_without_rich(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "benchmarks.printing", None)  # nor pip, which has a copy of it
    assert main(["bench"]) == 1
    assert "pip install -e .[bench]" in capsys.readouterr().err


def test_memory_of_a_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(room, "CGROUP", tmp_path)
    unlimited = room.available("cpu")
    for name, text in {
        "memory.max": "5000\n",
        "memory.current": "3000\n",
        "memory.stat": "inactive_file 100\n",
    }.items():
        (tmp_path / name).write_text(text)
    assert room.available("cpu") == 2100
    (tmp_path / "memory.max").write_text("max\n")
    assert unlimited is None or abs(room.available("cpu") - unlimited) < 2**30


def test_limits_are_measured_beyond_all_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for core, cores in ((0, "0-1"), (1, "0-1"), (2, "2-3")):
        for index, (level, size) in enumerate(((2, "1024K"), (3, "98304K"))):
            folder = tmp_path / f"cpu{core}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            (folder / "level").write_text(f"{level}\n")
            (folder / "size").write_text(f"{size}\n")
            (folder / "shared_cpu_list").write_text(cores if level == 3 else str(core))
    monkeypatch.setattr(room, "CACHES", tmp_path)
    monkeypatch.setattr(room, "available", lambda device: 2**40)
    assert 4 * room.elements_for_streams("cpu") == 8 * 2 * 96 * 2**20
    monkeypatch.setattr(room, "available", lambda device: 2**28)
    assert 4 * room.elements_for_streams("cpu") == 2**26
