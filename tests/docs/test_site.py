"""The site that `make docs` builds is whole."""

from __future__ import annotations

import html
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

import regkernels
from benchmarks.record import RESULTS
from tests import ROOT

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": "0"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def public_names() -> list[str]:
    names = [f"regkernels.{name}" for name in regkernels.__all__ if not name.startswith("__")]
    for module in (regkernels.optim, regkernels.prox, regkernels.reference, regkernels.selection):
        own = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        ]
        names += [f"{module.__name__}.{name}" for name in own]
    return [name for name in names if not inspect.ismodule(_resolved(name))]


def _resolved(name: str) -> Any:
    value: Any = regkernels
    for part in name.split(".")[1:]:
        value = getattr(value, part)
    return value


def test_every_public_name_has_an_entry_with_text(site: Path) -> None:
    pages = {path: path.read_text() for path in (site / "api").glob("*.html")}
    for name in public_names():
        value = _resolved(name)
        (text,) = (text for text in pages.values() if f'id="{name}"' in text)
        assert "<blockquote>" not in text, "a docstring has been taken for Markdown that it is not"
        if inspect.getdoc(value) is not None and callable(value):
            first = inspect.getdoc(value).split(".")[0].split("`")[0].strip()
            assert html.escape(first, quote=False) in text.split(f'id="{name}"', 1)[1], name


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    """Links may lead anywhere; scripts, styles, fonts and pictures are files of the site."""
    outside = re.compile(r"""(?:src|srcset)=["']?(?:https?:)?//|url\(["']?(?:https?:)?//|@import""")
    link = re.compile(r"""<link[^>]+href=["']?(?:https?:)?//""")
    for path in [*site.rglob("*.html"), *site.rglob("*.css")]:
        text = path.read_text()
        assert not outside.search(text) and not link.search(text), path


def test_every_committed_picture_of_a_benchmark_is_shown(site: Path) -> None:
    page = (site / "benchmarks.html").read_text()
    pictures = [path.relative_to(ROOT).as_posix() for path in RESULTS.glob("*/*.png")]
    assert pictures
    for picture in pictures:
        assert f'src="{picture}"' in page and (site / picture).read_bytes() == (ROOT / picture).read_bytes()
    assert (DOCS / "demo.png").read_bytes() == (site / "demo.png").read_bytes()


def test_links_and_anchors_lead_somewhere(site: Path) -> None:
    """Also those that are made, such as from one public name to another."""
    texts = {path: path.read_text() for path in site.rglob("*.html") if path.name != "404.html"}
    anchors = {path: set(re.findall(r"""\bid=["']?([^"'\s>]+)""", text)) for path, text in texts.items()}
    for path, text in texts.items():
        for target in map(html.unescape, set(re.findall(r"""<a[^>]+href=["']?([^"'\s>]+)""", text))):
            name, _, anchor = unquote(target).partition("#")
            if re.match(r"[a-z]+:", target) or not (name or anchor):
                continue
            there = (path.parent / name).resolve() if name else path
            there = there / "index.html" if there.is_dir() else there
            assert there.exists(), f"{path.relative_to(site)}: {target}"
            if anchor and not anchor.startswith("__"):  # places of the theme's own, such as its search
                assert anchor in anchors[there], f"{path.relative_to(site)}: {target}"


@pytest.mark.parametrize("end", ["e", "ation"])
def test_the_search_finds_both_spellings(site: Path, end: str) -> None:
    sections = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    found = [
        {section["location"] for section in sections if f"regulari{letter}{end}" in section["text"].lower()}
        for letter in "sz"
    ]
    assert found[0] == found[1] and len(found[0]) > 5
