"""Triton's kernels in its interpreter, which `make test` runs in a second run of pytest. Not how they compile: `tests/triton`."""
