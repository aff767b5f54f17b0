"""Chooses who does the arithmetic: `cpu` (C++), `eager` (the reference) or `triton` (CUDA and ROCm devices). All are a `Backend`.

``REGKERNELS_BACKEND=reference|cpp|triton`` forces one for the process, `use` for a block of code. Nothing here knows who asks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from regkernels.backends import cpu, eager, extension, gpu
from regkernels.backends.protocol import Backend

NAMES = ("reference", "cpp", "triton")
VARIABLE = "REGKERNELS_BACKEND"

_forced: str | None = None


def _checked(name: str, source: str) -> str:
    """Returns ``name`` where it is a backend that can be used; raises otherwise, naming the ``source`` of the wish."""
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
    """Returns the backend that was asked for, by `use` or by the environment; None: each device has its own."""
    if _forced is not None:
        return _forced
    chosen = os.environ.get(VARIABLE)
    return _checked(chosen, VARIABLE) if chosen else None


def name() -> str:
    """Returns the backend in use for CPU tensors."""
    return forced() or ("cpp" if extension.C is not None else "reference")


def usable() -> list[str]:
    """Returns the backends that compute on CPU tensors here: "triton" is among them in Triton's interpreter only."""
    names = ["reference"] if extension.C is None else ["reference", "cpp"]
    return [*names, "triton"] if interprets() else names


def interprets() -> bool:
    """Tells whether the Triton kernels run on CPU tensors, in its interpreter. Imports Triton only where that was asked for."""
    return bool(os.environ.get("TRITON_INTERPRET")) and gpu.missing_because() is None and _interpreted()


def _interpreted() -> bool:
    from regkernels.backends import triton

    return triton.INTERPRETED


def _triton() -> Backend:
    from regkernels.backends import triton

    return triton


def backend_for(device: torch.device) -> Backend:
    """Returns the backend that computes on ``device``; raises RuntimeError where there is none."""
    if device.type == "cpu":
        chosen = name()
        if chosen == "triton":
            if not _interpreted():
                raise RuntimeError(
                    "the Triton kernels take CPU tensors in Triton's interpreter only: set TRITON_INTERPRET=1 before Python "
                    "starts, or leave the choice of the backend to regkernels"
                )
            return _triton()
        if chosen == "cpp":
            return cpu
        return eager
    _check_device(device)
    if forced() in ("reference", "cpp"):
        raise RuntimeError(
            f"the backend {forced()!r} was asked for ({VARIABLE} or backends.use), but it computes on CPU tensors only, and "
            f"there is one on {str(device)!r}; ask for 'triton', or for none"
        )
    return _triton()


def _check_device(device: torch.device) -> None:
    """Raises where no kernels run on a device that is not the CPU."""
    if device.type != "cuda":
        raise RuntimeError(
            f"regkernels has kernels for CPU, CUDA and ROCm tensors, got a tensor on device {str(device)!r}; "
            "move the model to one of those before the optimizer is made"
        )
    gpu.check_triton(f"a tensor on {str(device)!r}")
    if _interpreted():
        raise RuntimeError(
            f"TRITON_INTERPRET is set, which runs kernels on CPU tensors only, and there is a tensor on {str(device)!r}; "
            "unset it before Python starts"
        )


def check(device: torch.device, dtype: torch.dtype, name: str) -> None:
    """Raises where no backend computes with tensors of ``dtype`` on ``device``. ``name``: of such a tensor."""
    backend_for(device)
    gpu.check_dtype(device, dtype, name)


def is_asynchronous(device: torch.device) -> bool:
    """Tells whether numbers that kernels compute for ``device`` are handed out as tensors there, which nobody waits for."""
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
