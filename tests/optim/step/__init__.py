"""A step and what it is made of: plans that are made anew, scaling and clipping, steps left out, penalties, torch.compile. Not its bits on
every backend: `tests/backends`.
"""
