"""Holds what ends a run."""

from __future__ import annotations


class Fault(Exception):
    """Says what a program did that no device defines, and which thread did it where."""


class Unsupported(Exception):
    """Names what the machine does not know; to guess would be worse than to stop."""
