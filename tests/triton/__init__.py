"""Tests what Triton's kernels are compiled to, for every architecture and without a device. Nothing here runs them."""
