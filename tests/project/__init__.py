"""Tests the project around the package: its version, what an sdist carries, and what a forge is told. No part of an sdist."""
