"""Tests that the pages, README.md and the examples run and say what is so. What they say of one subject may be tested with it,
and not here.
"""
