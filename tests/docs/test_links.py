"""Every link and anchor of README.md, CONTRIBUTING.md and the pages leads to something in the repository."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests import ROOT

TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md", *(ROOT / "docs").rglob("*.md")]
LINK = re.compile(r"(?<!\\)\]\((?P<target>[^)\s]+)\)|(?:href|src)=\"(?P<quoted>[^\"]+)\"")


def _without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))


def _anchors(text: str) -> set[str]:
    """Returns what a forge and MkDocs call the headings: in lower case, without punctuation, with a hyphen for each space."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    plain = (re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()) for heading in headings)
    found = {re.sub(r" ", "-", heading.strip()) for heading in plain}
    return found | set(re.findall(r"\[\]\(\)\{ #([\w.]+) \}", text)) | set(re.findall(r"\bid=\"([\w.-]+)\"", text))


def _links(text: str) -> Iterator[str]:
    for link in LINK.finditer(_without_code(text)):
        target = link["target"] or link["quoted"]
        if not re.match(r"[a-z]+:", target):
            yield unquote(target)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    for target in _links(path.read_text()):
        name, _, anchor = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        assert there.exists() and ROOT in there.parents, target
        if anchor and there.suffix == ".md" and not anchor.startswith("regkernels."):
            assert anchor in _anchors(there.read_text()), target
