"""Tests that the benchmarks measure what they say, with shapes so small that it takes seconds. No time is asserted here."""
