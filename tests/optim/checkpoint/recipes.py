"""The code blocks of docs/checkpoints.md. Tests run them, and train with the functions defined there."""

from __future__ import annotations

import re
from typing import Any

from tests import ROOT

PATH = ROOT / "docs" / "checkpoints.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PATH.read_text(), re.S)


def functions() -> dict[str, Any]:
    """What the blocks that only define functions define."""
    names: dict[str, Any] = {}
    for block in blocks():
        if "\ndef " in block:
            exec(compile(block, str(PATH), "exec"), names)
    return names
