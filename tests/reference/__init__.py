"""The specification against the papers' formulas, brute force and exact arithmetic. Whether the kernels equal it: `tests/backends`."""
