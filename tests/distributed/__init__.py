"""Optimizers on several ranks: real processes (`world`), and simulated ones (`simulated`). What a rank computes alone: `tests/optim`."""
