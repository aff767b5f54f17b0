"""Runs all tests with other versions of torch, each in an environment of its own: gigabytes to download, and half an hour each.

``python -m tests.matrix [2.11.0 ...]`` takes those that the workflow of the forge takes, or those that are named, with the Triton that each
requires and this version of Python. Each is run on a copy of what is committed, in build/matrix, by ``make test``, and noted in
docs/stability.md. The exit status is non-zero where a test failed. It needs PyYAML, which the documentation's tools bring.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import yaml

from tests import ROOT

PAGE = ROOT / "docs" / "stability.md"
BEGIN, END = "<!-- matrix: begin -->\n", "<!-- matrix: end -->"
TITLES = ("interpreter", "torch", "Triton", "machine", "passed", "failed", "on")


def tritons() -> dict[str, str]:
    """Returns the Triton of each version of torch that the workflow pins."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    rows = workflow["jobs"]["tests"]["strategy"]["matrix"]["include"]
    pinned = (row for row in rows if row["torch"].startswith("=="))
    return {row["torch"].removeprefix("=="): row["triton"].removeprefix("==") for row in pinned}


def copy_of_what_is_committed(torch: str) -> Path:
    """Makes, or brings up to date, a clone with an environment in which this torch is."""
    folder = ROOT / "build" / "matrix" / f"torch-{torch}-python-{platform.python_version()}"
    if folder.exists():
        subprocess.run(["git", "pull", "--quiet"], cwd=folder, check=True)
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    return folder


def run(torch: str, triton: str) -> tuple[int, int]:
    """Returns how many tests passed, and how many did not."""
    folder = copy_of_what_is_committed(torch)
    own = {
        key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHONPATH")
    }
    make = ["make", f"PYTHON={sys.executable}"]
    subprocess.run([*make, ".venv/.stamp-package"], cwd=folder, check=True, env=own)
    pip = [".venv/bin/python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, f"torch=={torch}", f"triton=={triton}"], cwd=folder, check=True, env=own)
    log = folder / "build" / "test.log"
    with log.open("w") as written:
        # Both runs of it, whatever the first one says.
        tests = subprocess.Popen(
            [*make, "--ignore-errors", "test"], cwd=folder, env=own, stdout=subprocess.PIPE, text=True
        )
        assert tests.stdout is not None
        for line in tests.stdout:
            written.write(line)
            print(line, end="", flush=True)
    return counted(log.read_text())


def counted(log: str) -> tuple[int, int]:
    """Reads the lines in which pytest sums up."""
    said = re.findall(r"^=+ (.*\b(?:passed|failed|error).*) in [\d.]+s.*=+$", log, re.M)
    if not said:
        return 0, 1
    passed, failed = (
        sum(int(number) for line in said for number in re.findall(rf"(\d+) {word}", line))
        for word in ("passed", "(?:failed|error)")
    )
    return passed, failed


def note(torch: str, triton: str, passed: int, failed: int, page: Path = PAGE) -> None:
    """Replaces the row of this Python, torch and machine."""
    before, _, rest = page.read_text().partition(BEGIN)
    lines, _, after = rest.partition(END)
    rows = {
        tuple(cells[:4]): cells
        for cells in ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines.splitlines()[2:])
    }
    machine = f"{platform.system()} {platform.machine()}"
    key = (platform.python_version(), torch, triton, machine)
    rows[key] = [*key, str(passed), str(failed), str(date.today())]
    table = [TITLES, ["---"] * len(TITLES), *(rows[key] for key in sorted(rows))]
    page.write_text(before + BEGIN + "".join(f"| {' | '.join(cells)} |\n" for cells in table) + END + after)


def main(versions: Sequence[str]) -> int:
    known = tritons()
    for version in versions:
        if version not in known:
            print(
                f"error: torch {version} is none of {', '.join(known)}, which tests.yml names with their Triton",
                file=sys.stderr,
            )
            return 2
    if shutil.which("git") is None:
        print("error: git is needed, to copy what is committed", file=sys.stderr)
        return 2
    failures = 0
    for version in versions or list(known):
        passed, failed = run(version, known[version])
        note(version, known[version], passed, failed)
        failures += failed
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
