"""``make gpu``, whose machine is borrowed: each part by itself, what it leaves behind, and that nothing there is needed that is not there."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

pytest.importorskip("triton")

STAND_IN = """#!/bin/sh
echo "$*" >> "$SEEN"
case "$*" in
    *"$FAILING"*) echo "FAILED it has"; exit 1 ;;
    *matplotlib*) exit 1 ;;
esac
"""


class Machine:
    """A copy of the script, and a Python that only notes what it is asked to do. ``FAILING``: a part of what it cannot."""

    def __init__(self, root: Path) -> None:
        self.root, self.out = root, root / "out"
        (root / "tests/gpu").mkdir(parents=True)
        (root / "benchmarks/results/machine").mkdir(parents=True)
        for file in (ROOT / "tests/gpu").glob("test_*.py"):
            (root / "tests/gpu" / file.name).touch()
        (root / "tests/gpu/run.sh").write_text((ROOT / "tests/gpu/run.sh").read_text())
        self.python = root / "python"
        self.python.write_text(STAND_IN)
        self.python.chmod(self.python.stat().st_mode | stat.S_IXUSR)

    def run(self, *parts: str, failing: str = "nothing", **environment: str) -> tuple[int, list[str]]:
        seen = self.root / "seen"
        seen.unlink(missing_ok=True)
        own = {"PYTHON": str(self.python), "SEEN": str(seen), "FAILING": failing, "OUT": str(self.out)}
        without = {name: value for name, value in os.environ.items() if not name.startswith("REGKERNELS")}
        script = ["sh", str(self.root / "tests/gpu/run.sh"), *parts]
        ended = subprocess.run(script, env=without | own | environment, capture_output=True, text=True, timeout=60)
        return ended.returncode, seen.read_text().splitlines() if seen.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def measured(seen: list[str]) -> list[str]:
    return [line.partition(" bench ")[2] for line in seen if " bench " in line]


def files_in(seen: list[str]) -> list[str]:
    return sorted(line.rpartition("/")[2] for line in seen if "-m pytest" in line)


FILES = sorted(file.name for file in (ROOT / "tests/gpu").glob("test_*.py"))


def test_all_parts_the_quick_benchmark_first(machine: Machine) -> None:
    status, seen = machine.run()
    assert status == 0
    assert "install" in seen[1]
    quick, whole = measured(seen)
    assert quick.startswith(f"--device cuda --output {machine.root}/build/gpu/bench --no-pictures --quick")
    assert whole == "--device cuda"
    assert files_in(seen) == FILES
    assert seen.index(next(line for line in seen if "--quick" in line)) < min(
        number for number, line in enumerate(seen) if "-m pytest" in line
    )


@pytest.mark.parametrize(
    ("parts", "benches", "files"),
    [
        (["bench"], 1, []),
        (["tests"], 0, FILES),
        (["tests", "-k", "a name"], 0, FILES),
        (["-k", "a name"], 0, FILES),
        (["record"], 1, []),
        (["low_precision", "tests"], 1, FILES),
    ],
)
def test_parts_by_themselves(machine: Machine, parts: list[str], benches: int, files: list[str]) -> None:
    status, seen = machine.run(*parts)
    assert status == 0
    assert len(measured(seen)) == benches
    assert files_in(seen) == files
    for line in seen:
        assert "-m pytest" not in line or ("-k a name" in line) == ("-k" in parts)
        assert " bench " not in line or ("--suite low_precision" in line) == ("low_precision" in parts)


@pytest.mark.parametrize("failing", ["test_streams.py", "--quick", "--device cuda", "pip"])
def test_a_part_that_fails_leaves_the_others_and_all_logs(machine: Machine, failing: str) -> None:
    status, seen = machine.run(failing=failing)
    assert status == 1
    assert (machine.out / "install.log").exists()
    assert failing == "pip" or (files_in(seen) == FILES and len(measured(seen)) == 2)
    assert failing != "test_streams.py" or "FAILED" in (machine.out / "tests/test_streams.log").read_text()
    assert failing == "pip" or (machine.out / "record/machine").is_dir()


def test_without_a_gpu_nothing_is_done(machine: Machine) -> None:
    status, seen = machine.run(failing="is_available")
    assert (status, len(seen)) == (0, 1)


def test_a_rehearsal_on_the_cpu(machine: Machine, tmp_path: Path) -> None:
    """With the real Python: every test can be collected, and a suite is measured, without what only the development environment has."""
    hidden = tmp_path / "hidden"
    for package in ("hypothesis", "sklearn", "matplotlib", "rich", "xdist"):
        (hidden / package).mkdir(parents=True)
        (hidden / package / "__init__.py").write_text("raise ImportError('it is not here')")
    environment = {"REGKERNELS_TEST_DEVICE": "cpu", "PYTHONPATH": f"{hidden}:{ROOT}", "OUT": str(tmp_path / "kept")}
    without = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    ended = subprocess.run(
        ["sh", str(ROOT / "tests/gpu/run.sh")],
        env=without | environment | {"PYTHON": sys.executable, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert list((tmp_path / "kept/bench").glob("*/cpu-*.json"))
    (log,) = (tmp_path / "kept/tests").glob("*.log")
    assert "tests collected" in log.read_text()
