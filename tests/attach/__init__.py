"""`attach_prox`: shrinkage after another optimizer's step. On a device: `tests/gpu`."""
