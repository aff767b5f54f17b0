"""Tests what backends are given: where groups and segments lie in memory. What is computed from it is not tested here but in
`tests/backends`.
"""
