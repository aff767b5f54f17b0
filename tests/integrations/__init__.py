"""Frameworks that docs/frameworks.md has examples for, the real ones. Not what they rely on, one by one: `tests/optim`."""
