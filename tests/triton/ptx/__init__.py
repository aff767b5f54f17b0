"""Runs what Triton compiles for NVIDIA's devices on the CPU, and tests with it. `machine` knows PTX and nothing else; `device` lets
the package launch on it."""
