"""Tests penalties as values in the loss and as proximal operators. As keys of an optimizer they are not tested here but in `tests/optim`."""
