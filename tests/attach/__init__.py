"""Tests `attach_prox`, the shrinkage after another optimizer's step. On a device it is not tested here but in `tests/gpu`."""
