"""An optimizer and a penalty that are there for the tests only, as data: what they add to which files."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from collections.abc import Container
from pathlib import Path
from typing import NamedTuple

from tests import ROOT


class Edit(NamedTuple):
    """``text`` goes in front of ``before``, which the file has once; without it, ``text`` is a new file."""

    file: str
    text: str
    before: str = ""

    def apply(self, root: Path) -> None:
        path = root / self.file
        if not self.before:
            assert not path.exists(), f"{self.file} is there already"
            path.write_text(self.text)
            return
        content = path.read_text()
        assert content.count(self.before) == 1, (
            f"{self.file} has {self.before!r} {content.count(self.before)} times, not once"
        )
        path.write_text(content.replace(self.before, self.text + self.before))


class Addition(NamedTuple):
    section: str
    """Of CONTRIBUTING.md."""
    most: int
    """Source files at most."""
    source: list[Edit]
    tests: list[Edit]

    @property
    def files(self) -> list[str]:
        """Its source files, each once."""
        return list(dict.fromkeys(edit.file for edit in self.source))


def read(name: str, section: str, most: int) -> Addition:
    found = tomllib.loads((Path(__file__).parent / f"{name}.toml").read_text())
    return Addition(section, most, *([Edit(**edit) for edit in found[key]] for key in ("source", "tests")))


OPTIMIZER = read("optimizer", "Adding an optimizer", 6)
PENALTY = read("penalty", "Adding a penalty", 8)
ADDITIONS = (OPTIMIZER, PENALTY)


def listed(section: str, kind: str) -> list[str]:
    """The files that a section of CONTRIBUTING.md lists under "Source files" or "Tests", ``...`` standing for a new one."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    text = re.split(r"^## ", text.partition(f"## {section}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    text = re.split(r"^\*\*", text.partition(f"**{kind}**")[2], maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(r"^(?:\d+\.|-) `([^`]+)`", text, flags=re.MULTILINE)


def copy(into: Path, without: Container[str] = ()) -> Path:
    """A copy of the tree with both additions, without what they add to some files."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in names.stdout.splitlines():
        if (ROOT / name).is_file():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, into / name)
    for addition in ADDITIONS:
        for edit in (*addition.source, *addition.tests):
            if edit.file not in without:
                edit.apply(into)
    return into
