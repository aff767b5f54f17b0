"""Tests what a new optimizer and a new penalty touch: the lists in CONTRIBUTING.md, proved by adding one of each to a copy. What the
additions compute is not judged here.
"""
