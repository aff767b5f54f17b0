"""A training run that keeps a checkpoint as docs/checkpoints.md says, for tests that kill it."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from tests.optim.checkpoint import recipes
from tests.optim.checkpoint.cases import PRECISIONS, Model, ours

STEPS = 40
EVERY = 3


def run(folder: Path, name: str, precision: str, connection: Connection | None = None) -> dict[str, Any]:
    """Trains to the end, from the checkpoint in ``folder`` on where there is one; returns weights and states.

    Tells ``connection`` the number of each step that was done, the first of them where it starts. At the end it waits
    there until it is killed or told to go on, and sends what it returns.
    """
    torch.set_num_threads(1)
    torch.manual_seed(5)
    recipe = recipes.functions()
    dtype, options = PRECISIONS[precision]
    model = Model(dtype)
    optimizer = ours(name, model, **options)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    path = folder / "checkpoint.pt"
    first = recipe["resume"](path, model, optimizer, scheduler)
    if connection is not None:
        connection.send(first)
    for step in range(first, STEPS):
        optimizer.zero_grad()
        model.backward(step)
        optimizer.step()
        scheduler.step()
        if connection is not None:
            connection.send(step + 1)
        if (step + 1) % EVERY == 0:
            recipe["save"](recipe["pack"](step + 1, model, optimizer, scheduler), path)
    result = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    if connection is not None:
        connection.recv()
        torch.save(result, folder / "result.pt")
    return result
