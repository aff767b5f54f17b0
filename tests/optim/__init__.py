"""Tests optimizers as users meet them: arguments, contracts, what they converge to, torch.optim beside them. A single step is tested in
`step`, saving and loading in `checkpoint`, the optimizer on the CPU in `offload`, the step within the backward pass in `release`; bits
are not tested here but in `tests/backends`.
"""
