"""What tests share: matrices as data, the engine that runs them, small problems with known solutions. No tests."""
