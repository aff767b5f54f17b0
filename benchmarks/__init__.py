"""Measures implementations of the same thing side by side: one file per question, one kind of record.

Correctness is not tested here but in `tests/`, except that of the peers, which are checked before they are timed.
"""
