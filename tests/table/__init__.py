"""What backends are given: where groups and segments lie in memory. Not what is computed from it, which is in `tests/backends`."""
