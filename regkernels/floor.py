"""Refuses a torch that is too old, before anything else is imported that would fail in a less clear way."""

from __future__ import annotations

import re

import torch

OLDEST = (2, 11)
"""As pyproject.toml says; pip sees to it, unless it was told not to look."""


def check_torch(version: str) -> None:
    """Raises for a version of torch before `OLDEST`."""
    found = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if found < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ImportError(
            f"regkernels needs torch {oldest} or newer, and this is torch {version}: pip install 'torch>={oldest}'"
        )


check_torch(str(torch.__version__))
