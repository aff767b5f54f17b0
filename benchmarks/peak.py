"""Measures the most memory that a call has at a time, beyond what is there before it."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.peers import Unsupported

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
PEAK_ONLY = "5"  # resets the high-water mark of resident memory, see proc(5)


def of(run: Callable[[], object], device: str) -> int:
    """Measures the bytes of a call. ``run`` has to have run before: what it keeps from call to call is not counted.

    On a GPU, what torch's allocator hands out. On a CPU nothing counts allocations of all libraries, so it is resident
    memory: its high-water mark during the call against its size before, to within a few hundred KiB.

    Raises:
        Unsupported: where the operating system lets nobody reset the mark.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    _return_what_is_free()
    try:
        CLEAR.write_text(PEAK_ONLY)
        before = _kilobytes("VmRSS")
        run()
        return 1024 * max(0, _kilobytes("VmHWM") - before)
    except OSError as error:
        raise Unsupported(f"peak memory cannot be measured here: {error}") from error


def _return_what_is_free() -> None:
    """Returns what malloc keeps from earlier calls: it would be resident before and hide that it is needed again."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _kilobytes(field: str) -> int:
    found = re.search(rf"^{field}:\s*(\d+) kB", STATUS.read_text(), re.M)
    if found is None:
        raise OSError(f"no {field} in {STATUS}")
    return int(found.group(1))
