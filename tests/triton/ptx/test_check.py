"""What `REGKERNELS_CHECK` says where nothing can be run, and that a run which launched nothing fails."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from regkernels import backends
from regkernels.backends import gpu
from tests import ROOT
from tests.triton.ptx import check


@pytest.fixture(autouse=True)
def _asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(check.VARIABLE, "ptx")
    monkeypatch.setenv(backends.VARIABLE, "triton")
    monkeypatch.setenv(check._FOLDER, "")  # restored afterwards
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def refused() -> str:
    """Returns the one line of the refusal."""
    with pytest.raises(pytest.UsageError) as caught:
        check.target()
    (line,) = str(caught.value).splitlines()
    return line


def test_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check.target() == check.USUAL
    monkeypatch.setenv(check.VARIABLE, "ptx:sm_80")
    assert check.target() == "sm_80"


@pytest.mark.parametrize("value", ["", "yes", "ptx:", "sass:sm_90"])
def test_an_unknown_value(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(check.VARIABLE, value)
    assert "must be 'ptx'" in refused() and repr(value) in refused()


@pytest.mark.parametrize("name", ["sm_70", "gfx942", "sm90"])
def test_an_unknown_target(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(check.VARIABLE, f"ptx:{name}")
    assert "sm_90" in refused() and "gfx950" not in refused() and repr(name) in refused()


def test_the_interpreter_is_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "unset one of them" in refused()


def test_another_backend_launches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backends.VARIABLE, "cpp")
    assert "set REGKERNELS_BACKEND=triton" in refused()


def test_without_a_triton_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "version", lambda: "99.1.0")
    assert "99.1.0 is newer than 3.8" in refused() and "pip install 'triton<=3.8.*'" in refused()
    monkeypatch.setattr(gpu, "missing_because", lambda: "Triton 3.5 is not supported; upgrade torch")
    assert "Triton 3.5 is not supported; upgrade torch" in refused()


@pytest.mark.parametrize(("launches", "status"), [(0, pytest.ExitCode.TESTS_FAILED), (3, pytest.ExitCode.OK)])
def test_a_run_that_launches_nothing_fails(
    launches: int, status: pytest.ExitCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = SimpleNamespace(counts={"update": launches} if launches else {}, architecture="sm_90")
    monkeypatch.setattr(check, "enter", lambda: device)
    plugin, session = check.Plugin(), SimpleNamespace(config=SimpleNamespace(), exitstatus=pytest.ExitCode.OK)
    report: Any = SimpleNamespace(when="call")
    plugin.pytest_runtest_logreport(report)
    plugin.pytest_sessionfinish(session)  # type: ignore[arg-type]
    assert session.exitstatus == status


def test_launches_of_ranks_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "enter", lambda: SimpleNamespace(counts={"reduce": 5}, architecture="sm_90"))
    plugin = check.Plugin()
    with check.entered():  # as a rank does in a process of its own
        pass
    session = SimpleNamespace(config=SimpleNamespace(workeroutput={}), exitstatus=pytest.ExitCode.OK)
    plugin.pytest_sessionfinish(session)  # type: ignore[arg-type]
    assert session.config.workeroutput == {check.VARIABLE: {"reduce": 10}}


def test_launches_of_other_processes_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of pytest-xdist's, whose numbers come when they end."""
    monkeypatch.setattr(check, "enter", lambda: SimpleNamespace(counts={}, architecture="sm_90"))
    plugin = check.Plugin()
    plugin.pytest_testnodedown(SimpleNamespace(workeroutput={check.VARIABLE: {"update": 2}}))
    plugin.pytest_testnodedown(SimpleNamespace())  # one that died
    lines: list[str] = []
    plugin.pytest_terminal_summary(SimpleNamespace(write_line=lambda text, **_: lines.append(text)))
    assert lines == ["PTX for sm_90: 2 launches (update 2)"]


def test_folders_that_ask_for_the_backends_know_of_it() -> None:
    """Where they did not, the tests of Triton's kernels were not there, and the run passed without a launch of them."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "--collect-only",
        "-m",
        "interpreted",
        "tests/penalties",
    ]
    plain = {**os.environ, "PYTEST_ADDOPTS": ""}  # which may ask for another form of the list
    found = subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True, timeout=120)
    assert any("test_values.py" in line and "[triton" in line for line in found.stdout.splitlines()), found.stdout[
        -500:
    ]
