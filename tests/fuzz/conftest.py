"""Leaves the ranks to `make fuzz`: to start them takes longer than to train with them."""

from __future__ import annotations

from tests.fuzz.profiles import PROFILE

collect_ignore = [] if PROFILE == "long" else ["test_ranks.py"]
