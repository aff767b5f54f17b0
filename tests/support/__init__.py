"""Holds what tests share: matrices as data, the engine that runs them, small problems with known solutions. Nothing is tested here."""
