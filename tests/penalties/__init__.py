"""Penalties as values in the loss and as proximal operators. Not as keys of an optimizer: `tests/optim`."""
