"""What is asked of each Triton is asked of the interpreter of its own environment, and its failure is not lost."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.triton import versions


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What is run, in environments that are not made; Triton 3.6 fails."""
    started: list[list[str]] = []

    def run(command: list[str], **options: Any) -> SimpleNamespace:
        started.append(command)
        return SimpleNamespace(returncode=int(command[0] == "python of 3.6"))

    monkeypatch.setattr(versions, "environment", lambda version: Path(f"python of {version}"))
    monkeypatch.setattr(subprocess, "run", run)
    return started


def test_all_versions_compile_all(commands: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert versions.main([]) == 1
    assert commands == [[f"python of {version}", "-m", "tests.triton.compiled"] for version in versions.TORCH]
    assert capsys.readouterr().out.endswith("failed: 3.6\n")


def test_what_follows_two_dashes_is_passed_on(commands: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert versions.main(["3.8", "--", "--run", "sm_90"]) == 0
    assert commands == [["python of 3.8", "-m", "tests.triton.compiled", "--run", "sm_90"]]
    assert capsys.readouterr().out.endswith("none failed\n")


def test_an_unknown_version(commands: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert versions.main(["3.8", "2.9"]) == 2 and not commands
    assert "2.9 is none of 3.6" in capsys.readouterr().err
