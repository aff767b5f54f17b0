"""What docs/stability.md promises is what the package has: its modules, and the versions that it runs with."""

from __future__ import annotations

import inspect
import re
import tomllib

import regkernels
from regkernels.backends import gpu
from tests import ROOT

PAGE = (ROOT / "docs" / "stability.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_modules_are_those_of_the_package() -> None:
    public = PAGE.partition("## What is public\n")[2].partition("Everything else")[0]
    modules = {name for name in regkernels.__all__ if inspect.ismodule(getattr(regkernels, name))}
    assert set(re.findall(r"`regkernels\.([a-z]+)`", public)) == modules


def test_floors_are_those_that_hold() -> None:
    table = dict(re.findall(r"^\| (Python|PyTorch|Triton) \| ([^|]*?) \|", PAGE, re.M))
    (torch,) = (re.fullmatch(r"torch>=([\d.]+)", line) for line in PROJECT["dependencies"] if "torch" in line)
    assert PROJECT["requires-python"] == f">={table['Python']}" and table["PyTorch"] == torch[1]
    oldest, on_rocm = (".".join(map(str, version)) for version in (gpu.OLDEST, gpu.OLDEST_ON_ROCM))
    assert table["Triton"] == f"{oldest}, on ROCm {on_rocm}"
    pythons = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line]
    assert f"| Python | {pythons[0]} | {pythons[-1]} |" in PAGE
