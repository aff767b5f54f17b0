"""What a forge runs covers what pyproject.toml promises, with the versions that requirements-dev.txt pins."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from regkernels.floor import OLDEST
from tests import ROOT
from tests.triton.versions import TORCH

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
PYTHONS = [found[1] for line in PROJECT["classifiers"] if (found := re.fullmatch(r".*Python :: (3\.\d+)", line))]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PIN = re.compile(r"(?<![\w.-])([a-zA-Z][\w.-]*)==([\w.]+)")


def matrix() -> list[dict[str, Any]]:
    read = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())
    return read["jobs"]["tests"]["strategy"]["matrix"]["include"]


def floor(specifiers: SpecifierSet) -> str:
    (version,) = (one.version for one in specifiers if one.operator == ">=")
    return version


def pins() -> dict[str, str]:
    texts = [(ROOT / name).read_text() for name in ("requirements-dev.txt", "wheels/requirements.txt")]
    found = [match.groups() for text in texts for match in re.finditer(rf"^{PIN.pattern}", text, re.M)]
    assert len(dict(found)) == len(found), "a package is pinned twice"
    return dict(found)


def test_every_python_is_tested_from_the_oldest_on() -> None:
    assert PYTHONS[0] == floor(SpecifierSet(PROJECT["requires-python"]))
    assert {row["python"] for row in matrix()} == set(PYTHONS)
    assert PYPROJECT["tool"]["cibuildwheel"]["build"] == [f"cp{version.replace('.', '')}-*" for version in PYTHONS]
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py{PYTHONS[0].replace('.', '')}"
    assert PYPROJECT["tool"]["mypy"]["python_version"] == PYTHONS[0]


def test_torch_is_tested_from_the_oldest_to_the_newest() -> None:
    (promised,) = (one for one in map(Requirement, PROJECT["dependencies"]) if one.name == "torch")
    oldest, rows = floor(promised.specifier), matrix()
    assert any(row["torch"] == f"=={oldest}.0" and row["python"] == PYTHONS[0] for row in rows)
    assert any(row["torch"].startswith(">=") for row in rows), "no row takes whatever is the newest"
    assert any(row["torch"] == f"=={pins()['torch']}" for row in rows)
    for triton, torch in TORCH.items():
        assert any(row["torch"].startswith(f"=={torch}.") and row["triton"].startswith(f"=={triton}.") for row in rows)


def test_the_oldest_torch_is_said_once_more_at_import() -> None:
    (promised,) = (one for one in map(Requirement, PROJECT["dependencies"]) if one.name == "torch")
    assert floor(promised.specifier) == ".".join(map(str, OLDEST))


def test_wheels_are_made_where_tests_run() -> None:
    wheels = yaml.safe_load((ROOT / ".github/workflows/wheels.yml").read_text())
    machines = wheels["jobs"]["wheels"]["strategy"]["matrix"]["os"]
    assert set(machines) == {row["os"] for row in matrix()}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_may_read_and_no_more(path: Path) -> None:
    """But for the jobs that publish, which get their rights from an environment that somebody guards."""
    read = yaml.safe_load(path.read_text())
    assert read["permissions"] == {"contents": "read"} and read["concurrency"]["cancel-in-progress"]
    for job in read["jobs"].values():
        assert "environment" in job or "permissions" not in job


def test_pins_agree() -> None:
    pinned = pins()
    for path in [*WORKFLOWS, ROOT / "pyproject.toml", ROOT / "Makefile"]:
        for name, version in PIN.findall(path.read_text()):
            assert pinned.get(name, version) == version, f"{path.name} has {name}=={version}"
    names = [Requirement(line).name for line in PYPROJECT["build-system"]["requires"]]
    assert set(names) <= pinned.keys(), "builds without isolation find what they need in requirements-dev.txt"
