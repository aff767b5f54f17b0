"""Every implementation against the reference, bit for bit, and which of them is chosen. Triton's are compiled in `tests/triton`, and run
in `tests/interpreted` and `tests/gpu`. Whether the reference is right: `tests/reference`.
"""
