"""Tests optimizers on several ranks: real processes (`world`), and simulated ones (`simulated`). What a rank computes alone is not
tested here but in `tests/optim`.
"""
