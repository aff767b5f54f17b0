"""Tests a step and what it is made of: plans that are made anew, scaling and clipping, steps left out, penalties, torch.compile. Its bits
on every backend are not tested here but in `tests/backends`.
"""
