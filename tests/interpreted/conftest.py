"""Tests of what only Triton's interpreter does: `make test` runs them with TRITON_INTERPRET=1 and REGKERNELS_BACKEND=triton."""

from __future__ import annotations

from regkernels import backends

collect_ignore_glob = [] if backends.forced() == "triton" else ["test_*.py"]
