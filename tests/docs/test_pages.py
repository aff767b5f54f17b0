"""What the pages in docs/ say runs, and comes to what their text promises."""

from __future__ import annotations

import functools
import re
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import pytest
import torch
import yaml

import regkernels
from tests import ROOT
from tests.docs.promises import PROMISES

DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
BLOCK = re.compile(r'^```python(?: title="(?P<title>[^"\n]*)")?\n(?P<code>.*?)^```$', re.M | re.S)
QUICK_START = BLOCK.search((ROOT / "README.md").read_text())["code"]
"""Which the home page has, too, and test_readme runs."""
ON_GPU = "on a GPU"
RUN_ELSEWHERE = {
    "checkpoints.md",
    "distributed.md",
    "example_gpt.md",
    "frameworks.md",
    "gradient_release.md",
    "sharded_checkpoints.md",
}
"""By tests of their own, which also look at what the code leaves behind."""


def prepared() -> dict[str, Any]:
    """The names that blocks may use without saying where they come from."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    loader = [(torch.randn(5, 4), torch.randint(3, (5,))) for _ in range(3)]
    x, y = loader[0]
    data = {"criterion": torch.nn.functional.cross_entropy, "loader": loader, "x": x, "y": y}
    return {"torch": torch, "rk": regkernels, "model": model, **data}


class Block(NamedTuple):
    number: int  # the first of a page is 1
    source: str
    code: CodeType  # whose errors tell the page and its line


def blocks(page: str) -> Iterator[Block]:
    text = (DOCS / page).read_text()
    found = [block for block in BLOCK.finditer(text) if block["code"] != QUICK_START]
    for number, block in enumerate(found, 1):
        lines_before = text.count("\n", 0, block.start("code"))
        code = compile("\n" * lines_before + block["code"], str(DOCS / page), "exec")
        if block["title"] != ON_GPU or torch.cuda.is_available():
            yield Block(number, block["code"], code)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in RUN_ELSEWHERE])
def test_code_does_what_the_page_promises(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block asserts it, or something in `PROMISES` does."""
    monkeypatch.chdir(tmp_path)
    # Generating code takes most of a minute, and tests/ops/test_registered.py does it.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    names = prepared()
    for block in blocks(page):
        exec(block.code, names)
        promise = PROMISES.get((page, block.number))
        assert promise is not None or "assert" in block.source.lower(), (
            f"nobody looks at what block {block.number} does"
        )
        assert promise is None or promise(Namespace(**names)), f"block {block.number}: {promise.__name__}"


def test_every_block_of_code_is_found() -> None:
    """A block in another form, such as an indented one, would be shown and not run."""
    for page in PAGES:
        text = (DOCS / page).read_text()
        assert len(re.findall(r"^\s*```\s*\{?\.?(?:python|py)", text, re.M)) == len(BLOCK.findall(text)), page


def _paths(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    else:
        for child in entry.values() if isinstance(entry, dict) else entry:
            yield from _paths(child)


def test_every_page_is_in_the_navigation_once() -> None:
    # Without the tags of Python objects that MkDocs knows and yaml's safe loader does not.
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert sorted(_paths(nav)) == PAGES


def test_chunks_are_as_large_as_the_page_says() -> None:
    text = (DOCS / "internals.md").read_text()
    drawing = (DOCS / "internals.svg").read_text()
    sources = {
        "csrc/table.h": r"kChunk = (\d+);",
        "regkernels/backends/triton/kernels/columns.py": r"CHUNK = .*\((\d+)\)",
    }
    for path, pattern in sources.items():
        (size,) = re.findall(pattern, (ROOT / path).read_text())
        assert f"{int(size):,} " in text and f"{int(size):,}" in drawing, path
