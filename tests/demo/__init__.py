"""Tests `python -m regkernels` and its demo. Its `bench` is not tested here but in `tests/benchmarks`."""
