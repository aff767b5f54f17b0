"""Warns in the line of the user's that called, however many functions of the package, or of torch, are in between."""

from __future__ import annotations

import sys
import warnings

_INNER = ("regkernels", "torch", "importlib")


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Warns as ``warnings.warn`` does, in the innermost line that is not of the package, of torch, or of an import."""
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__", "").partition(".")[0] in _INNER and frame.f_back is not None:
        frame = frame.f_back
    warnings.warn_explicit(
        text,
        category,
        frame.f_code.co_filename,
        frame.f_lineno,
        frame.f_globals.get("__name__"),
        frame.f_globals.setdefault("__warningregistry__", {}),
    )
