"""Tests what takes a device, or is another thing on one; without one these tests are skipped. `make gpu` runs them, `make test` does not."""
