"""Reports what this installation runs on."""

from __future__ import annotations

import platform
from typing import Any

import torch

from regkernels import backends
from regkernels._version import __version__
from regkernels.backends import extension, gpu


def info() -> dict[str, Any]:
    """Returns backend, instruction set, threads, devices and versions, as plain strings, numbers and lists.

    ``python -m regkernels info`` prints it; please add that to a bug report.
    """
    torch.get_num_threads()  # makes OpenMP adopt torch's number in this thread
    c = extension.C
    return {
        "version": __version__,
        "backend": backends.name(),
        "backends": backends.usable(),
        "extension": "loaded" if c is not None else f"missing: {extension.missing_because}",
        "instruction_set": c.isa() if c is not None else None,
        "instruction_sets": c.available_isas() if c is not None else [],
        "threads": c.num_threads() if c is not None else torch.get_num_threads(),
        "fast_address_check": extension.keeps_plans(),
        "triton": gpu.missing_because() or f"{gpu.version()}{', interpreted' if backends.interprets() else ''}",
        "devices": ["cpu", *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))],
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }
