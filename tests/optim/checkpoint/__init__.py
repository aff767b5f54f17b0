"""State dicts: saved, changed, exchanged with torch.optim and loaded, also after a run was killed. Sharded ones: `tests/distributed`."""
