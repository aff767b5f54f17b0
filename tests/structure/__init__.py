"""Tests networks without their zeros, and reports of zeros. How the zeros come about is not tested here but in `tests/optim`."""
