"""`step_in_backward`: steps within the backward pass. What such a step computes is the plain step's, tested in `tests/optim/step`."""
