"""Makes one step over all parameters of an optimizer: plans what is updated, keeps states and counts, and calls a backend.

It knows rules by name and options by value; torch's contract and the single optimizers stand above.
"""
