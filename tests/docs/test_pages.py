"""What the pages in docs/ say runs, and the site is whole."""

from __future__ import annotations

import functools
import html
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import regkernels
from benchmarks.record import RESULTS
from tests import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
BLOCK = re.compile(r'^```python(?: title="(?P<title>[^"\n]*)")?\n(?P<code>.*?)^```$', re.M | re.S)
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


def blocks(page: str) -> Iterator[Any]:
    """Compiled, so that errors tell the page and its line."""
    text = (DOCS / page).read_text()
    for block in BLOCK.finditer(text):
        lines_before = text.count("\n", 0, block.start("code"))
        code = compile("\n" * lines_before + block["code"], str(DOCS / page), "exec")
        if block["title"] != ON_GPU or torch.cuda.is_available():
            yield code


@pytest.mark.parametrize("page", [page for page in PAGES if page not in RUN_ELSEWHERE])
def test_code_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Generating code takes most of a minute, and tests/ops/test_registered.py does it.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    names = prepared()
    for code in blocks(page):
        exec(code, names)


class Recording(dict[str, Any]):
    """A param group that keeps every strength that was written into it."""

    def __init__(self, group: dict[str, Any]) -> None:
        super().__init__(group)
        self.written: list[float] = []

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        if key == "l1":
            self.written.append(value)


def test_the_schedule_of_the_first_page_warms_up() -> None:
    """It ends at full strength, where it once stayed at the 0 that it began with; biases stay at 0."""
    names = prepared()
    for code in blocks("index.md"):
        exec(code, names)
        if "rk" in code.co_names and "optimizer" in names:
            names["optimizer"].param_groups[:] = map(Recording, names["optimizer"].param_groups)
    weights, biases = (group.written for group in names["optimizer"].param_groups)
    assert weights == [0.0, 0.5e-4, 1e-4] and biases == [0.0, 0.0, 0.0]


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
