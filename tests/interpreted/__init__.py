"""Runs Triton's kernels in its interpreter, which `make test` does in a second run of pytest. How they compile is not tested here but
in `tests/triton`.
"""
