"""Tells how much memory is free, and how large arrays must be so that no cache holds them."""

from __future__ import annotations

import re
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")
CACHES = Path("/sys/devices/system/cpu")


def available(device: str) -> int | None:
    """Returns bytes that can still be taken without swapping; None where nobody says."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    found = [free for free in (_of_the_machine(), _of_the_container()) if free is not None]
    return min(found, default=None)


def _of_the_machine() -> int | None:
    try:
        free = re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
    except OSError:
        return None
    return 1024 * int(free.group(1)) if free else None


def _of_the_container() -> int | None:
    """Looks at a container's limits: it is killed at its own, however much the machine has. Files it has read can be dropped."""
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        files = re.search(r"^inactive_file (\d+)", (CGROUP / "memory.stat").read_text(), re.M)
    except (OSError, ValueError):  # no container, another version of cgroups, or "max"
        return None
    return max(0, limit - used + (int(files.group(1)) if files else 0))


def elements_for_streams(device: str) -> int:
    """Returns the elements of two float32 arrays that are several times the last-level caches together, and take half of what is free at most."""
    if device == "cuda":
        bytes_each = max(1 << 30, 16 * getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0))
    else:
        bytes_each = max(1 << 28, 8 * _last_level_caches())
    free = available(device)
    return (bytes_each if free is None else max(1 << 20, min(bytes_each, free // 4))) // 4


def _last_level_caches() -> int:
    """Returns bytes of all of them together: a processor may have several, each of which serves some of the cores."""
    caches: dict[tuple[int, str], int] = {}
    for folder in CACHES.glob("cpu[0-9]*/cache/index*"):
        try:
            level = int((folder / "level").read_text())
            size = re.fullmatch(r"(\d+)K", (folder / "size").read_text().strip())
            cores = (folder / "shared_cpu_list").read_text()
        except (OSError, ValueError):
            continue
        if size:
            caches[level, cores] = 1024 * int(size.group(1))
    last = max((level for level, _ in caches), default=0)
    return sum(size for (level, _), size in caches.items() if level == last)
