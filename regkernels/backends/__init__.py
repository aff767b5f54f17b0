"""Who does the arithmetic: `cpu` (C++) or `eager` (the reference). Both take the same calls.

``REGKERNELS_BACKEND=reference|cpp`` forces one for the process, `use` for a block of code.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch

from regkernels import extension
from regkernels.backends import cpu, eager

NAMES = ("reference", "cpp")
VARIABLE = "REGKERNELS_BACKEND"

_forced: str | None = None


def _checked(name: str, source: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{source} must be one of {', '.join(map(repr, NAMES))}, got {name!r}")
    if name == "cpp" and extension.C is None:
        raise RuntimeError(
            f"{source} asks for the C++ kernels, but they could not be loaded: {extension.missing_because}. "
            f"{extension.HOW_TO_BUILD}"
        )
    return name


def name() -> str:
    """The backend in use for CPU tensors."""
    if _forced is not None:
        return _forced
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return _checked(chosen, VARIABLE)
    return "cpp" if extension.C is not None else "reference"


def backend_for(device: torch.device) -> ModuleType:
    """The module that computes on ``device``; raises where there is none."""
    if device.type != "cpu":
        raise RuntimeError(
            f"regkernels has kernels for CPU tensors only, got a tensor on device {str(device)!r}; "
            "move the model to the CPU before the optimizer is made"
        )
    return cpu if name() == "cpp" else eager


@contextmanager
def use(backend: str) -> Iterator[None]:
    """Forces ``backend`` ("reference" or "cpp") within a ``with`` block."""
    global _forced
    before, _forced = _forced, _checked(backend, "backend")
    try:
        yield
    finally:
        _forced = before
