"""Tests `step_in_backward`: steps within the backward pass. What such a step computes is the plain step's, and is not tested here but in
`tests/optim/step`.
"""
