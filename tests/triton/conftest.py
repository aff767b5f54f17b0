"""These tests compile. In a process whose kernels are interpreted, or that has no Triton, there is nothing to compile."""

from __future__ import annotations

import importlib.util
import os

if os.environ.get("TRITON_INTERPRET") or importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py", *(f"ptx/test_{name}.py" for name in ("bits", "check", "mutants"))]
