"""Checks what the Triton kernels need: a Triton, and a device that has the types. Triton is imported when first needed."""

from __future__ import annotations

import importlib
import re
from functools import cache

import torch

OLDEST, OLDEST_ON_ROCM = (3, 6), (3, 7)
"""3.6 goes with torch 2.11, the oldest torch that is supported. On AMD devices its float32 square root does not scale
subnormal numbers, so that a tiny second moment could become NaN."""


def check_triton(wanted_for: str) -> None:
    """Raises where Triton is missing or too old."""
    reason = missing_because()
    if reason is not None:
        raise RuntimeError(f"{wanted_for} needs the Triton kernels, but {reason}")


@cache
def missing_because() -> str | None:
    """Says why the Triton kernels cannot be used; None where they can."""
    needed = OLDEST_ON_ROCM if torch.version.hip else OLDEST
    oldest = ".".join(map(str, needed))
    try:
        triton = importlib.import_module("triton")
    except ImportError as error:
        return (
            f"Triton cannot be imported ({error}); install the torch wheel for your device, which brings the right one, or "
            f"`pip install 'triton>={oldest}'`"
        )
    found = str(getattr(triton, "__version__", "unknown"))
    numbers = re.match(r"(\d+)\.(\d+)", found)
    if numbers is None or tuple(map(int, numbers.groups())) < needed:
        where = " on ROCm" if torch.version.hip else ""
        return f"Triton {found} is not supported{where}; {oldest} is the oldest that is: upgrade torch, which brings its own"
    return None


def version() -> str:
    return str(importlib.import_module("triton").__version__)


def check_dtype(device: torch.device, dtype: torch.dtype, name: str) -> None:
    """Raises where the device cannot compute with ``dtype``."""
    if device.type == "cuda" and dtype == torch.bfloat16 and not torch.version.hip:
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            raise RuntimeError(
                f"{name} is bfloat16, which {torch.cuda.get_device_name(device)} (compute capability {major}.{minor}) "
                "lacks; it takes 8.0. Use float16 or float32 there"
            )
