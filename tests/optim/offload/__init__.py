"""`CPUOffload`, with the CPU in the accelerator's place. With a real one: `tests/gpu`; on several ranks: `tests/distributed`."""
