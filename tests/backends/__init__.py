"""Tests every implementation against the reference, bit for bit, and which of them is chosen. Triton's are not compiled here but in
`tests/triton`, and run in `tests/interpreted` and `tests/gpu`; whether the reference is right is tested in `tests/reference`.
"""
