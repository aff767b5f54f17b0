"""The version comes from the tag, wherever a build begins: a repository, what git or setuptools packed of it, or a bare copy."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from email.parser import HeaderParser
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from runpy import run_path

import pytest

from tests import ROOT

OF_THE_REPOSITORY_ALONE = (".ci/", ".git", ".github/", ".pre-commit", "SECURITY.md", "tests/project/")
"""How the names begin of tracked files that an sdist does not carry."""


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false")
    command = ["git", *identity, "-c", "tag.gpgsign=false", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def tracked() -> list[str]:
    names = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    return [name for name in names if (ROOT / name).is_file()]


def hook(folder: Path, call: str) -> str:
    """Calls a function of the build backend in ``folder``, as pip and build do, and returns what it returns."""
    code = f"from setuptools.build_meta import *; import sys; print({call}, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr.splitlines()[-1]


def version(folder: Path) -> str:
    """Returns the version that a wheel of ``folder`` would have, without compiling one."""
    into = folder.parent / "metadata"
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir()
    name = hook(folder, "prepare_metadata_for_build_wheel('../metadata')")
    return HeaderParser().parsestr((into / name / "METADATA").read_text())["Version"]


def unpack(archive: Path, into: Path) -> Path:
    with tarfile.open(archive) as packed:
        packed.extractall(into, filter="data")
    (folder,) = into.iterdir()
    return folder


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """This tree as it is now, without a repository."""
    folder = tmp_path / "copy"
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture
def repository(copy: Path) -> Path:
    git(copy, "init", "--quiet")
    git(copy, "add", ".")
    git(copy, "commit", "--quiet", "--message", "all of it")
    return copy


def test_a_bare_copy_has_the_one_that_stands_in_pyproject(copy: Path) -> None:
    assert version(copy) == "0.1.0.dev0"


def test_a_repository_names_the_commit_until_there_is_a_tag(repository: Path) -> None:
    assert re.fullmatch(r"0\.1\.0\.dev\d+\+g[0-9a-f]+", version(repository))
    git(repository, "tag", "v0.3.0")
    assert version(repository) == "0.3.0"
    git(repository, "commit", "--quiet", "--allow-empty", "--message", "later")
    assert re.fullmatch(r"0\.3\.1\.dev1\+g[0-9a-f]+", version(repository))


def test_an_archive_knows_its_tag(repository: Path, tmp_path: Path) -> None:
    git(repository, "tag", "v0.3.0")
    git(repository, "archive", "--prefix", "archive/", "--output", str(tmp_path / "archive.tar"), "HEAD")
    assert version(unpack(tmp_path / "archive.tar", tmp_path / "unpacked")) == "0.3.0"


def carried(folder: Path) -> set[str]:
    """Returns what an sdist carries that was made from files, not by setuptools."""
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {path for path in there if path not in ("PKG-INFO", "setup.cfg") and ".egg-info/" not in path}


def test_an_sdist_carries_what_it_needs(copy: Path) -> None:
    """Without git, which would tell setuptools-scm what else there is."""
    archive = copy / "dist" / hook(copy, "build_sdist('dist')")
    expected = {path for path in tracked() if not path.startswith(OF_THE_REPOSITORY_ALONE)}
    assert carried(unpack(archive, copy / "build")) == expected


def test_an_sdist_knows_its_version(repository: Path) -> None:
    """Unpacked within a repository, too, where `make wheel` builds from it; and it carries nothing of the repository alone."""
    git(repository, "tag", "v0.3.0")
    folder = unpack(repository / "dist" / hook(repository, "build_sdist('dist')"), repository / "build")
    assert not any(path.startswith(OF_THE_REPOSITORY_ALONE) for path in carried(folder))
    assert version(folder) == "0.3.0"


def test_sources_that_nobody_installed_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", nowhere)
    assert run_path(str(ROOT / "regkernels" / "_version.py"))["__version__"] == "0+unknown"
