"""Tests `CPUOffload`, with the CPU in the accelerator's place. With a real one it is tested in `tests/gpu`, on several ranks in
`tests/distributed`.
"""
