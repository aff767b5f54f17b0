"""`python -m regkernels` and its demo. Its `bench`: `tests/benchmarks`."""
