"""Tests state dicts: saved, changed, exchanged with torch.optim and loaded, also after a run was killed. Sharded ones are not tested
here but in `tests/distributed`.
"""
