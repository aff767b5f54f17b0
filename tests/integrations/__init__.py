"""Tests the frameworks that docs/frameworks.md has examples for, the real ones. What they rely on is not tested here, one by one, but in
`tests/optim`.
"""
