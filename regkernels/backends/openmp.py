"""Finds the OpenMP runtime that torch has loaded, so that the extension runs on torch's threads and brings none of its own."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import torch

# In the order of the arguments of `_C.use_runtime`. The first is how GCC opens a region; the runtimes of LLVM and Intel have it, too.
_NEEDED = ("GOMP_parallel", "omp_get_max_threads", "omp_get_num_threads", "omp_get_thread_num")
_OPTIONAL = "omp_pause_resource_all"
"""Of OpenMP 5.0: without it children of a fork compute on one thread."""

_LIBRARY = "libtorch_cpu.dylib" if sys.platform == "darwin" else "libtorch_cpu.so"


def functions() -> tuple[int, ...] | None:
    """Returns the addresses that the extension's ``use_runtime`` takes; None where torch brings no OpenMP runtime.

    They are looked up in torch's own library and in what that was linked to, as the process may hold other runtimes beside.
    """
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / _LIBRARY))
    except OSError:
        return None
    needed = [_address(library, name) for name in _NEEDED]
    return (*needed, _address(library, _OPTIONAL)) if all(needed) else None


def _address(library: ctypes.CDLL, name: str) -> int:
    """Returns where a function lies; 0 where there is none of this name."""
    function = getattr(library, name, None)
    return 0 if function is None else ctypes.cast(function, ctypes.c_void_p).value or 0
