"""One step over all parameters of an optimizer: the plan of what is updated, states, counts, scaling, and the call of a backend.

It knows rules by name and options by value; torch's contract and the single optimizers stand above.
"""
