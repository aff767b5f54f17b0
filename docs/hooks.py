"""What MkDocs and mkdocstrings call while they build the pages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
RESULTS = "benchmarks/results/"

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]+\)")
_NAME = re.compile(r"<code>(regkernels(?:\.\w+)+)(\(\))?</code>")


def on_files(files: Files, config: Any) -> Files:
    """Adds the committed pictures, which are not in this folder, to the pages' files."""
    for path in sorted((ROOT / RESULTS).glob("*/*.png")):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Leads to the committed pictures within the site, and makes plain text of other links out of this folder: in the repository they work."""
    if "/" in page.file.src_uri:
        return markdown
    return _OUTSIDE.sub(r"\1", markdown.replace(f"](../{RESULTS}", f"]({RESULTS}"))


def on_page_content(html: str, **_: Any) -> str:
    """Makes a link of each `regkernels.…` that the reference has an entry for."""
    return _NAME.sub(r'<autoref optional identifier="\1"><code>\1\2</code></autoref>', html)


@event_priority(-100)  # after the plugin that writes it
def on_post_build(config: Any) -> None:
    """Lets the search find sections that speak of regularisation in either spelling: its stems of the two differ."""
    path = Path(config["site_dir"]) / "search" / "search_index.json"
    index = json.loads(path.read_text())
    for section in index["docs"]:
        words = re.findall(r"regulari[sz]\w*", f"{section['title']} {section['text']}".lower())
        if words:
            section["text"] += f"<p>({' '.join(sorted({_spelled_otherwise(word) for word in words}))})</p>"
    path.write_text(json.dumps(index, separators=(",", ":")))


def _spelled_otherwise(word: str) -> str:
    letter = len("regulari")
    return word[:letter] + {"s": "z", "z": "s"}[word[letter]] + word[letter + 1 :]


class Escaped(griffe.Extension):
    """Keeps Markdown from making a quotation of what a docstring says of an argument: ``l1: >= 0``."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^( +[\w, ]+: )>", r"\1\\>", obj.docstring.value, flags=re.M)
