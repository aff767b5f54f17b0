"""The operators registered with torch, by torch's own checks and under torch.compile. Not their values: `tests/penalties`."""
