"""Who does the arithmetic: `cpu` (C++), `eager` (the reference) or `triton` (CUDA and ROCm devices). All take the same calls.

``REGKERNELS_BACKEND=reference|cpp|triton`` forces one for the process, `use` for a block of code.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch

from regkernels.backends import cpu, eager, extension, gpu

NAMES = ("reference", "cpp", "triton")
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
    if name == "triton":
        gpu.check_triton(f"{source}={name!r}")
    return name


def forced() -> str | None:
    """The backend that was asked for, by `use` or by the environment; None: each device has its own."""
    if _forced is not None:
        return _forced
    chosen = os.environ.get(VARIABLE)
    return _checked(chosen, VARIABLE) if chosen else None


def name() -> str:
    """The backend in use for CPU tensors."""
    return forced() or ("cpp" if extension.C is not None else "reference")


def usable() -> list[str]:
    """The backends that compute on CPU tensors here. For `info`: "triton" is among them in Triton's interpreter only."""
    names = ["reference"] if extension.C is None else ["reference", "cpp"]
    return [*names, "triton"] if gpu.interprets() else names


def backend_for(device: torch.device) -> ModuleType:
    """The module that computes on ``device``; raises where there is none."""
    if device.type == "cpu":
        chosen = name()
        if chosen == "triton":
            gpu.check_interpreter()
            return importlib.import_module("regkernels.backends.triton")
        return cpu if chosen == "cpp" else eager
    gpu.check_device(device)
    if forced() in ("reference", "cpp"):
        raise RuntimeError(
            f"the backend {forced()!r} was asked for ({VARIABLE} or backends.use), but it computes on CPU tensors only, and "
            f"there is one on {str(device)!r}; ask for 'triton', or for none"
        )
    return importlib.import_module("regkernels.backends.triton")


def values_for(device: torch.device) -> ModuleType:
    """What belongs to `backend_for` for the penalties beyond L1 and L2."""
    return importlib.import_module(f"{backend_for(device).__name__}_values")


def is_asynchronous(device: torch.device) -> bool:
    """Whether numbers that kernels compute for ``device`` are handed out as tensors there, which nobody waits for."""
    return device.type != "cpu" or name() == "triton"


@contextmanager
def use(backend: str) -> Iterator[None]:
    """Forces ``backend`` ("reference", "cpp" or "triton") within a ``with`` block."""
    global _forced
    before, _forced = _forced, _checked(backend, "backend")
    try:
        yield
    finally:
        _forced = before
