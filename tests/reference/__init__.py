"""Tests the specification against the papers' formulas, brute force and exact arithmetic. Whether the kernels equal it is not tested here
but in `tests/backends`.
"""
