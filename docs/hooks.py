"""What MkDocs and mkdocstrings call while they build the pages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
RESULTS = "benchmarks/results/"

_PLACE = "<!-- benchmarks -->"
_PART = re.compile(r"<!-- (?:GPU )?benchmarks: begin -->\n(.*?)\n<!-- (?:GPU )?benchmarks: end -->", re.S)
_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]+\)")
_NAME = re.compile(r"<code>(regkernels(?:\.\w+)+)(\(\))?</code>")


def on_files(files: Files, config: Any) -> Files:
    """Adds the committed pictures, which are not in this folder, to the pages' files."""
    for path in sorted((ROOT / RESULTS).glob("*/*.png")):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Puts README.md's parts about benchmarks, which are written from records, in their place.

    And makes plain text of links that lead from a page out of this folder: in the repository they work.
    """
    if "/" not in page.file.src_uri:
        markdown = _OUTSIDE.sub(r"\1", markdown)
    if _PLACE not in markdown:
        return markdown
    parts = _PART.findall((ROOT / "README.md").read_text())
    if not parts:
        raise PluginError("README.md has no part with benchmarks; `python -m regkernels bench --readme` writes it")
    return markdown.replace(_PLACE, "\n\n".join(parts))


def on_page_content(html: str, **_: Any) -> str:
    """Makes a link of each `regkernels.…` that the reference has an entry for."""
    return _NAME.sub(r'<autoref optional identifier="\1"><code>\1\2</code></autoref>', html)


class Escaped(griffe.Extension):
    """Keeps Markdown from making a quotation of what a docstring says of an argument: ``l1: >= 0``."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^( +[\w, ]+: )>", r"\1\\>", obj.docstring.value, flags=re.M)
