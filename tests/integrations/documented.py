"""The examples of docs/frameworks.md."""

from __future__ import annotations

import re
from typing import Any

from tests import ROOT

DOCUMENT = ROOT / "docs" / "frameworks.md"


def examples() -> dict[str, str]:
    """The Python code of each section that has any, by heading."""
    sections = re.split(r"^## (.*)$", DOCUMENT.read_text(encoding="utf-8"), flags=re.M)[1:]
    code = {
        heading: "\n".join(re.findall(r"```python\n(.*?)```", body, re.S))
        for heading, body in zip(sections[::2], sections[1::2], strict=True)
    }
    return {heading: source for heading, source in code.items() if source}


def run(section: str) -> dict[str, Any]:
    """What the code of that section leaves behind."""
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(examples()[section], f"docs/frameworks.md, {section}", "exec"), names)
    return names
